"""What does not fit the one device at hand: LoRA over an 8-bit base by a recorded decision, or a refusal."""

import math

import pytest

from tests.recipe import GIB, Recipe, write_large_model
from trainer.config.errors import ConfigError


@pytest.fixture
def large(recipe: Recipe) -> str:
    """A model of 671,088,640 parameters."""
    return f"model.path={write_large_model(recipe.folder / 'large')}"


def refusal(recipe: Recipe, *overrides: str, gpus: tuple[int, ...]) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.plan(*overrides, machine=recipe.machine(*gpus))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_method_that_does_not_fit_the_one_gpu_falls_back_to_lora_over_8_bits(recipe: Recipe, large: str) -> None:
    # In fp32, 603,979,776 trained weights of 4 + 4 + 8 bytes and an embedding of 2^26 * 4: 9 + 0.25 GiB. 8 GiB cannot
    # hold them; a byte a weight and adapters can.
    plan = recipe.plan(large, "freeze.embeddings=true", machine=recipe.machine(8 * GIB))
    assert (plan.config.method, plan.config.model.quantisation, plan.config.freeze) == ("lora", "int8", None)
    assert (plan.strategy, plan.world_size, plan.activation_checkpointing) == ("single", 1, True)
    decisions = {decision.field: decision for decision in plan.decisions}
    assert (decisions["method"].asked, decisions["method"].used) == ("full", "lora")
    assert "GiB a rank (single, micro-batches of " in decisions["method"].reason
    assert "; model states 9.25 GiB)" in decisions["method"].reason
    assert "and 7.20 GiB may be used" in decisions["method"].reason  # 90 % of 8
    assert "LoRA over an 8-bit base needs" in decisions["method"].reason
    assert (decisions["model.quantisation"].asked, decisions["model.quantisation"].used) == ("none", "int8")
    assert decisions["freeze"].used == "none"


def test_what_fits_stays_as_it_was_asked_for(recipe: Recipe, large: str) -> None:
    plan = recipe.plan(large, machine=recipe.machine(16 * GIB))
    assert (plan.config.method, plan.config.model.quantisation) == ("full", "none")
    assert "method" not in {decision.field for decision in plan.decisions}


def test_lora_that_does_not_fit_keeps_its_settings_over_an_8_bit_base(recipe: Recipe, large: str) -> None:
    # 671,088,640 weights in fp32 are 2.5 GiB; in 8 bits, with the embedding of 2^26 weights in fp32, 0.8 GiB.
    plan = recipe.plan(large, "method=lora", "lora.rank=3", machine=recipe.machine(2 * GIB))
    assert (plan.config.lora_or_default.rank, plan.config.model.quantisation) == (3, "int8")
    assert "method" not in {decision.field for decision in plan.decisions}


def test_who_wants_no_fallback_is_refused_with_the_numbers_and_the_offer(recipe: Recipe, large: str) -> None:
    message = refusal(recipe, large, "layout.on_oversize=refuse", gpus=(8 * GIB,))
    assert message.startswith("layout.on_oversize: refuse, and ")
    assert "does not fit: the smallest way needs" in message
    assert "Or set layout.on_oversize=fallback: LoRA over an 8-bit base needs" in message


def test_what_fits_in_no_way_is_refused(recipe: Recipe, large: str) -> None:
    message = refusal(recipe, large, gpus=(GIB // 2,))
    assert message.endswith("LoRA over an 8-bit base does not fit either.")


def test_several_gpus_do_not_fall_back(recipe: Recipe, large: str) -> None:
    assert "Use more devices" in refusal(recipe, large, gpus=(GIB, GIB))


def test_a_fallback_hashes_as_what_it_runs(recipe: Recipe, large: str) -> None:
    fallen = recipe.plan(large, "layout.strategy=single", machine=recipe.machine(8 * GIB))
    asked = ("method=lora", "lora={}", "model.quantisation=int8", "layout.strategy=single")
    assert recipe.plan(large, *asked, machine=recipe.machine(8 * GIB)).config_sha256 == fallen.config_sha256


def test_checkpointing_is_switched_on_where_a_step_would_not_fit_without(recipe: Recipe) -> None:
    geometry = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 8, "num_attention_heads": 2}
    recipe.write_config(
        **geometry, num_key_value_heads=1, intermediate_size=16, vocab_size=32, tie_word_embeddings=True
    )
    wide = recipe.plan("training.activation_checkpointing=false").memory.total_bytes
    narrow = recipe.plan("training.activation_checkpointing=true").memory.total_bytes
    assert narrow < wide
    asked = ("training.examples_per_device=8", "layout.memory_per_device_gib=")
    tight = recipe.plan(asked[0], f"{asked[1]}{math.ceil((wide - 1) / 0.9) / GIB}", machine=recipe.machine(GIB))
    assert tight.activation_checkpointing
    (decision,) = [d for d in tight.decisions if d.field == "training.activation_checkpointing"]
    assert (decision.used, decision.reason) == ("on", "nothing fits without")

"""Combinations that cannot work, or would work wrongly in silence, are refused with what does work."""

import pytest

from tests.recipe import Recipe
from trainer.config.errors import ConfigError

GIB = 2**30


def refusal(recipe: Recipe, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.plan(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("offload", "strategy", "able"),
    [
        ("optimizer", "ddp", "zero2"),
        ("optimizer", "single", "zero2"),
        ("optimizer_and_parameters", "single", "zero3"),
        ("optimizer_and_parameters", "zero2", "zero3"),
    ],
)
def test_a_strategy_that_cannot_offload_is_refused_with_the_nearest_that_can(
    recipe: Recipe, offload: str, strategy: str, able: str
) -> None:
    message = refusal(recipe, f"layout.offload={offload}", f"layout.strategy={strategy}")
    assert message.startswith(f"layout.offload: found {offload} with layout.strategy {strategy}: ")
    assert message.endswith(f" Set layout.strategy={able}.")


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_moments_in_8_bits_are_for_whole_tensors(recipe: Recipe, strategy: str) -> None:
    message = refusal(recipe, "training.optimizer=adamw_8bit", f"layout.strategy={strategy}")
    assert message.startswith(f"training.optimizer: found adamw_8bit with layout.strategy {strategy}")
    assert recipe.plan("training.optimizer=adamw_8bit", "layout.strategy=ddp", "layout.processes=2").strategy == "ddp"


def test_auto_takes_a_strategy_that_can_offload_even_on_one_rank(recipe: Recipe) -> None:
    assert recipe.plan("layout.offload=optimizer").strategy == "zero1"
    assert recipe.plan("layout.offload=optimizer_and_parameters").strategy == "zero3"


@pytest.mark.parametrize("layout", ["layout.strategy=zero3", "layout.strategy=ddp", "layout.processes=2"])
def test_a_quantised_base_on_several_processes_is_refused(recipe: Recipe, layout: str) -> None:
    message = refusal(recipe, "method=lora", "model.quantisation=int8", layout)
    assert message.startswith("model.quantisation: found int8 with layout.strategy ")
    assert "Set layout.strategy=single" in message
    assert ("layout.processes=1" in message) == (layout == "layout.processes=2")


def test_a_quantised_base_takes_one_of_several_gpus(recipe: Recipe) -> None:
    plan = recipe.plan("method=lora", "model.quantisation=int4", machine=recipe.machine(8 * GIB, 8 * GIB))
    assert (plan.strategy, plan.world_size) == ("single", 1)


def test_four_bits_on_a_cpu_are_refused_with_what_works(recipe: Recipe) -> None:
    assert refusal(recipe, "method=lora", "model.quantisation=int4").endswith("Set model.quantisation=int8.")


def test_fp16_on_a_cpu_is_refused_with_what_works(recipe: Recipe) -> None:
    assert refusal(recipe, "training.precision=fp16").endswith("Set training.precision=bf16.")
    assert recipe.plan("training.precision=fp16", machine=recipe.machine(8 * GIB)).device == "cuda"


def test_a_quantised_base_is_for_lora(recipe: Recipe) -> None:
    assert "Set method: lora" in refusal(recipe, "model.quantisation=int8")

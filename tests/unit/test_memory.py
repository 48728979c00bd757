"""Model states are those of the ZeRO paper, and a model's memory follows from its published shapes."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from launch.memory import (
    communication_bytes,
    estimate_memory,
    model_states,
    moments_8bit_bytes,
    quantised_base_bytes,
)
from launch.model_facts import ModelFacts, read_model_facts
from launch.parameters import count_parameters, read_parameters
from launch.show import memory_rows
from tests.recipe import GIB, Recipe
from trainer.config.deepspeed import BUCKET_ELEMENTS, MAX_LIVE_PARAMETERS
from trainer.config.plan import MemoryEstimate
from trainer.config.schema import Precision, Strategy

# The paper prints GB of 1e9 bytes with one decimal.
ROUNDING_GB = 0.05


def state_bytes(strategy: Strategy, *, frozen: float = 0, trainable: float, ranks: int, precision: Precision) -> int:
    return model_states(
        num_frozen=int(frozen),
        num_trainable=int(trainable),
        strategy=strategy,
        world_size=ranks,
        precision=precision,
    ).model_state_bytes


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("strategy", "gigabytes"),
    [
        # Rajbhandari et al. 2020, figure 1 and section 3: psi = 7.5e9, N = 64, K = 12.
        ("zero1", 31.4),  # (2 + 2 + 12 / 64) * 7.5 = 4.1875 * 7.5 = 31.406
        ("zero2", 16.6),  # (2 + (2 + 12) / 64) * 7.5 = 2.21875 * 7.5 = 16.641
        ("zero3", 1.9),  # (2 + 2 + 12) / 64 * 7.5 = 0.25 * 7.5 = 1.875
    ],
)
def test_zero_of_7_5_billion_parameters_on_64_ranks_takes_what_the_paper_says(
    strategy: Strategy, gigabytes: float, precision: Precision
) -> None:
    found = state_bytes(strategy, trainable=7.5e9, ranks=64, precision=precision) / 1e9
    assert found == pytest.approx(gigabytes, abs=ROUNDING_GB)


@pytest.mark.parametrize(
    ("strategy", "precision", "bytes_a_parameter"),
    [
        # 16 bits are autocast over fp32 weights: 4 + 4 + 8.
        ("single", "fp32", 16),
        ("single", "bf16", 16),
        ("ddp", "fp16", 16),
        # ZeRO: 2 + 2 + 12.
        ("zero1", "bf16", 16),
        ("zero2", "fp16", 16),
        ("zero3", "bf16", 16),
        # In fp32 DeepSpeed copies the weights as masters all the same: 4 + 4 + 12.
        ("zero1", "fp32", 20),
        ("zero2", "fp32", 20),
        ("zero3", "fp32", 20),
    ],
)
def test_one_rank_holds_everything(strategy: Strategy, precision: Precision, bytes_a_parameter: int) -> None:
    assert state_bytes(strategy, trainable=1000, ranks=1, precision=precision) == 1000 * bytes_a_parameter


def test_frozen_weights_take_no_gradients_and_no_optimizer_states() -> None:
    # 1000 parameters * 4 + 100 * (4 + 8) = 5200.
    assert state_bytes("ddp", frozen=900, trainable=100, ranks=4, precision="fp32") == 5200
    # ZeRO-3 over 4 ranks in bf16: 1000 * 2 / 4 + 100 * (2 + 12) / 4 = 500 + 350.
    assert state_bytes("zero3", frozen=900, trainable=100, ranks=4, precision="bf16") == 850


def test_offload_moves_states_from_the_device_to_main_memory() -> None:
    # 1000 parameters, bf16, 4 ranks, ZeRO-3: 500 bytes of weights, 500 of gradients, 3000 of optimizer states a rank.
    states = {"num_frozen": 0, "num_trainable": 1000, "strategy": "zero3", "world_size": 4}
    here = [parts(e) for e in offloads({**states, "precision": "bf16"})]
    assert here == [(500, 500, 3000, 0), (500, 500, 0, 3000), (0, 500, 0, 3500)]
    # fp32: 1000, 1000, and 12 * 1000 / 4 = 3000.
    here = [parts(e) for e in offloads({**states, "precision": "fp32"})]
    assert here == [(1000, 1000, 3000, 0), (1000, 1000, 0, 3000), (0, 1000, 0, 4000)]


def test_only_stage_3_moves_weights_to_main_memory() -> None:
    # bf16, 4 ranks, ZeRO-2: all 2000 bytes of weights stay.
    states = {"num_frozen": 0, "num_trainable": 1000, "strategy": "zero2", "world_size": 4, "precision": "bf16"}
    assert [e.weight_bytes for e in offloads(states)] == [2000, 2000, 2000]


def parts(estimate: MemoryEstimate) -> tuple[int, int, int, int]:
    return (
        estimate.weight_bytes,
        estimate.gradient_bytes,
        estimate.optimizer_bytes,
        estimate.offloaded_bytes,
    )


def offloads(states: dict[str, Any]) -> list[MemoryEstimate]:
    return [model_states(**states, offload=kind) for kind in ("none", "optimizer", "optimizer_and_parameters")]


def test_moments_in_8_bits_take_a_byte_and_their_scales() -> None:
    # 4096: 2 * 4096 + 2 * 4 * 16 blocks = 8320. 4097: 2 * 4097 + 2 * 4 * 17 = 8330. 4095 is small: 8 * 4095 = 32760.
    # Both codebooks, 2 * 256 * 4 = 2048, once.
    assert moments_8bit_bytes([4096]) == 8320 + 2048
    assert moments_8bit_bytes([4097, 4096]) == 8330 + 8320 + 2048
    assert moments_8bit_bytes([4095]) == 32760


def test_buffers_of_collectives_are_those_of_each_stage() -> None:
    settings: Any = {"precision": "bf16", "num_parameters": 10**6, "num_trainable": 10**5, "largest": 10**4}
    # 2 bytes for each of 10^5 gradients, which fit one bucket; two buckets where they overlap with the backward pass.
    assert communication_bytes(strategy="zero2", device="cuda", **settings) == 2 * 2 * 10**5
    assert communication_bytes(strategy="zero1", device="cpu", **settings) == 2 * 10**5
    # Stage 3: one bucket, and the gathered weights, here all of them.
    assert communication_bytes(strategy="zero3", device="cuda", **settings) == 2 * (10**5 + 10**6)
    settings |= {"num_parameters": 10**10, "num_trainable": 10**10}
    gathered = MAX_LIVE_PARAMETERS + BUCKET_ELEMENTS
    assert communication_bytes(strategy="zero3", device="cuda", **settings) == 2 * (BUCKET_ELEMENTS + gathered)
    settings["largest"] = 10**9  # a single weight is gathered whole, however large
    assert communication_bytes(strategy="zero3", device="cuda", **settings) == 2 * (BUCKET_ELEMENTS + 10**9)
    assert communication_bytes(strategy="ddp", device="cuda", **settings) == 0


def estimate(recipe: Recipe, facts: ModelFacts, *overrides: str, **changes: Any) -> MemoryEstimate:
    settings: dict[str, Any] = {"strategy": "single", "world_size": 1, "examples_per_microbatch": 1}
    settings |= {"activation_checkpointing": False, "device": "cuda", **changes}
    return estimate_memory(recipe.config(*overrides), facts, **settings)


def test_lora_in_16_bits_keeps_the_base_in_16_bits_and_adapters_in_32(recipe: Recipe) -> None:
    # Adapters of rank 1 on q (8, 8), k and v (4, 8), o (8, 8), up (16, 8), down (8, 16): 16 + 12 + 12 + 16 + 24 + 24.
    facts = read_model_facts(recipe.model)
    found = estimate(recipe, facts, "method=lora", "lora={rank: 1}", "training.precision=bf16")
    assert (found.num_parameters, found.num_trainable_parameters) == (720 + 104, 104)
    assert found.weight_bytes == 2 * 720 + 4 * 104
    assert (found.gradient_bytes, found.optimizer_bytes) == (4 * 104, 8 * 104)
    zero = estimate(recipe, facts, "method=lora", "lora={rank: 1}", "training.precision=bf16", strategy="zero1")
    assert zero.weight_bytes == 2 * (720 + 104)


def test_weights_frozen_by_name_stay_in_fp32(recipe: Recipe) -> None:
    found = estimate(recipe, read_model_facts(recipe.model), "freeze={embeddings: true}", "training.precision=bf16")
    assert found.weight_bytes == 4 * 720
    assert found.gradient_bytes == 4 * (720 - 256)


def test_modules_trained_in_full_are_there_twice(recipe: Recipe) -> None:
    # 32 * 8 = 256 weights of the embeddings: a trained copy beside the frozen ones, and 104 of adapters.
    lora = "lora={rank: 1, train_in_full: [embed_tokens]}"
    config = recipe.config("method=lora", lora)
    assert count_parameters(config, read_model_facts(recipe.model)) == (720, 104 + 256)


def test_without_geometry_activations_are_unknown_and_count_nothing(recipe: Recipe) -> None:
    found = estimate(recipe, read_model_facts(recipe.model))
    assert (found.activation_bytes, found.logit_bytes) == (None, None)
    assert found.total_bytes == found.model_state_bytes == 16 * 720
    assert dict(memory_rows(found))["activations"] == "unknown (model_type not given)"
    rows = memory_rows(found.model_copy(update={"model_type": "mamba"}))
    assert dict(rows)["logits and loss"] == "unknown (model_type mamba)"


def test_the_table_adds_up(recipe: Recipe) -> None:
    whole = MemoryEstimate(
        num_parameters=1,
        num_trainable_parameters=1,
        weight_bytes=1 * GIB,
        gradient_bytes=2 * GIB,
        optimizer_bytes=3 * GIB,
        offloaded_bytes=4 * GIB,
        activation_bytes=5 * GIB,
        logit_bytes=6 * GIB,
        communication_bytes=7 * GIB,
    )
    # 1 + 2 + 3 + 5 + 6 + 7 = 24; main memory is another place.
    assert memory_rows(whole)[-2:] == [("together, at most", "24.00 GiB"), ("in main memory", "4.00 GiB")]
    assert whole.model_state_bytes == 6 * GIB


OPT_6_7B = {
    "model_type": "opt",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "ffn_dim": 16384,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 4096,
    "activation_function": "relu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
}
"""Zhang et al. 2022, arXiv 2205.01068, table 1, and config.json of facebook/opt-6.7b."""


def opt_shapes() -> dict[str, tuple[int, ...]]:
    hidden, inner = 4096, 16384
    shapes: dict[str, tuple[int, ...]] = {
        "model.decoder.embed_tokens.weight": (50272, hidden),
        "model.decoder.embed_positions.weight": (2048 + 2, hidden),
        "model.decoder.final_layer_norm.weight": (hidden,),
        "model.decoder.final_layer_norm.bias": (hidden,),
    }
    matrices = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
    matrices |= {"fc1": (inner, hidden), "fc2": (hidden, inner)}
    for layer in range(32):
        prefix = f"model.decoder.layers.{layer}"
        for name, shape in matrices.items():
            shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{prefix}.{norm}.weight": (hidden,), f"{prefix}.{norm}.bias": (hidden,)}
    return shapes


@pytest.fixture
def opt(tmp_path: Path) -> ModelFacts:
    """OPT-6.7B as its files tell: the weights are a hole of 13 GB."""
    header, end = {}, 0
    for name, shape in opt_shapes().items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder = tmp_path / "opt"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(OPT_6_7B))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return read_model_facts(folder)


def test_opt_6_7b_has_its_published_size(recipe: Recipe, opt: ModelFacts) -> None:
    # A layer: 4 * (4096^2 + 4096) + 2 * 4096 * 16384 + 16384 + 4096 + 4 * 4096 = 201,379,840; times 32.
    # Embeddings 50272 * 4096 = 205,914,112 and 2050 * 4096 = 8,396,800; the last norm 8192.
    assert opt.num_parameters == 6_444_154_880 + 205_914_112 + 8_396_800 + 8_192 == 6_658_473_984
    found = estimate(recipe, opt, "method=lora", "training.precision=fp16")
    # 2 bytes each: 13.3 GB of weights in fp16, beside the adapters in fp32.
    adapters = found.num_trainable_parameters
    assert found.weight_bytes - 4 * adapters == 13_316_947_968


def test_opt_6_7b_has_moments_of_two_bytes_in_8_bits(recipe: Recipe, opt: ModelFacts) -> None:
    # Every tensor has 4096 elements or more, in whole blocks of 256: 2 bytes and 8 / 256 each, and the codebooks.
    found = estimate(recipe, opt, "training.optimizer=adamw_8bit")
    assert found.optimizer_bytes == 2 * 6_658_473_984 + 6_658_473_984 // 32 + 2048


def test_opt_6_7b_in_8_bits_takes_7_gigabytes(recipe: Recipe, opt: ModelFacts) -> None:
    # 32 * (4 * 4096^2 + 2 * 4096 * 16384) = 6,442,450,944 weights of a byte; an fp32 scale for each of
    # 32 * (4 * 4096 + 16384 + 4096) = 1,179,648 outputs; the other 216,023,040 in fp32.
    parameters = read_parameters(recipe.config("method=lora", "model.quantisation=int8"), opt)
    wanted = 6_442_450_944 + 4 * 1_179_648 + 4 * 216_023_040
    assert quantised_base_bytes(parameters, opt, "int8") == wanted == 7_311_261_696
    # int4: half a byte, and a scale for each 64 weights.
    wanted = 6_442_450_944 // 2 + 4 * 6_442_450_944 // 64 + 4 * 216_023_040
    assert quantised_base_bytes(parameters, opt, "int4") == wanted


def test_opt_6_7b_fits_one_device_as_lora_over_int8_where_full_fine_tuning_does_not(
    recipe: Recipe, opt: ModelFacts
) -> None:
    device = 12 * GIB
    tokens = "data.sequence_length_tokens=2048"
    half = (tokens, "training.precision=fp16")
    table = {
        "full": estimate(recipe, opt, *half, activation_checkpointing=True),
        "lora": estimate(recipe, opt, *half, "method=lora", activation_checkpointing=True),
        "lora int8": estimate(
            recipe, opt, *half, "method=lora", "model.quantisation=int8", activation_checkpointing=True
        ),
    }
    assert table["full"].model_state_bytes == 16 * 6_658_473_984  # 4 + 4 + 8 bytes: 106.5 GB
    assert [name for name, memory in table.items() if memory.total_bytes <= device] == ["lora int8"]
    # Logits of one example, 12 bytes each at the peak: 12 * 2048 * 50272 = 1.2 GB.
    assert {memory.logit_bytes for memory in table.values()} == {1_235_484_672}
    # 32 layer inputs of 2048 * 4096 * 4 bytes = 1.07 GB, and more for the layer that is recomputed.
    activations = table["lora int8"].activation_bytes
    assert activations is not None
    assert 32 * 2048 * 4096 * 4 < activations < 2 * 32 * 2048 * 4096 * 4


def test_zero_3_over_eight_devices_holds_what_one_cannot(recipe: Recipe, opt: ModelFacts) -> None:
    spread = {"strategy": "zero3", "world_size": 8, "activation_checkpointing": True}
    found = estimate(recipe, opt, "data.sequence_length_tokens=2048", "training.precision=bf16", **spread)
    # 16 * 6,658,473,984 / 8 = 13,316,947,968 of states; 2 * (50 + 550) million bytes of buffers.
    assert found.model_state_bytes == 13_316_947_968
    assert found.communication_bytes == 2 * 600_000_000

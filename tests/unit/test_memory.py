"""Model states are those of the ZeRO paper, and a damaged model file is told as such."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from launch.memory import estimate_memory, read_model_facts
from tests.recipe import Recipe
from trainer.config.errors import ConfigError
from trainer.config.plan import MemoryEstimate
from trainer.config.schema import Precision, Strategy

# The paper prints GB of 1e9 bytes with one decimal.
ROUNDING_GB = 0.05


def model_states(strategy: Strategy, *, frozen: float = 0, trainable: float, ranks: int, precision: Precision) -> int:
    return estimate_memory(
        num_frozen=int(frozen),
        num_trainable=int(trainable),
        strategy=strategy,
        world_size=ranks,
        precision=precision,
    ).model_state_bytes


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
    strategy: Strategy, gigabytes: float
) -> None:
    found = model_states(strategy, trainable=7.5e9, ranks=64, precision="bf16") / 1e9
    assert found == pytest.approx(gigabytes, abs=ROUNDING_GB)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "zero2", "zero3"])
def test_one_rank_needs_16_bytes_a_parameter_whatever_the_strategy(strategy: Strategy, precision: Precision) -> None:
    # fp32: 4 + 4 + 8. bf16 under ZeRO: 2 + 2 + 12. bf16 elsewhere is autocast over fp32 weights: 4 + 4 + 8.
    assert model_states(strategy, trainable=1000, ranks=1, precision=precision) == 16_000


def test_frozen_weights_take_no_gradients_and_no_optimizer_states() -> None:
    # 1000 parameters * 4 + 100 * (4 + 8) = 5200.
    assert model_states("ddp", frozen=900, trainable=100, ranks=4, precision="fp32") == 5200
    # ZeRO-3 over 4 ranks in bf16: 1000 * 2 / 4 + 100 * (2 + 12) / 4 = 500 + 350.
    assert model_states("zero3", frozen=900, trainable=100, ranks=4, precision="bf16") == 850


def test_facts_of_a_model_come_from_its_files(recipe: Recipe) -> None:
    facts = read_model_facts(recipe.model)
    assert (facts.num_parameters, facts.context_tokens) == (720, 64)


def test_a_model_in_several_files_is_read_whole(recipe: Recipe) -> None:
    weights = recipe.model / "model.safetensors"
    header = {"head": {"dtype": "F32", "shape": [10, 3], "data_offsets": [0, 120]}}
    write_safetensors(recipe.model / "model-2.safetensors", json.dumps(header).encode(), num_data_bytes=120)
    assert weights.exists()
    assert read_model_facts(recipe.model).num_parameters == 720 + 30


def write_safetensors(path: Path, header: bytes, *, length: int | None = None, num_data_bytes: int = 0) -> None:
    """8 bytes of header length, the header, the data; `length` is what the file claims."""
    claimed = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", claimed) + header + bytes(num_data_bytes))


@pytest.mark.parametrize(
    ("header", "length"),
    [
        pytest.param(b'{"head": {"dtype": "F32", "sha', None, id="cut short"),
        pytest.param(b'{"head": {}', 2**62, id="longer than any memory"),
        pytest.param(b"<html>404</html>", None, id="a web page"),
        pytest.param(b"\xff\xfe\xfd", None, id="not text"),
        pytest.param(b"", None, id="empty"),
    ],
)
def test_a_damaged_header_is_told_with_the_file(recipe: Recipe, header: bytes, length: int | None) -> None:
    path = recipe.model / "model.safetensors"
    write_safetensors(path, header, length=length)
    with pytest.raises(ConfigError, match=r"is not a safetensors file, or is cut short\. Copy it again\.") as caught:
        read_model_facts(recipe.model)
    assert str(path) in str(caught.value)


def test_a_file_of_less_than_eight_bytes_is_damaged(recipe: Recipe) -> None:
    (recipe.model / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        read_model_facts(recipe.model)


@pytest.mark.parametrize("header", [b"[]", b'{"head": 3}', b'{"head": {"dtype": "F32"}}'])
def test_a_header_that_is_json_but_no_table_of_tensors_is_damaged(recipe: Recipe, header: bytes) -> None:
    write_safetensors(recipe.model / "model.safetensors", header)
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        read_model_facts(recipe.model)


def test_a_file_whose_data_is_cut_short_is_damaged(recipe: Recipe) -> None:
    path = recipe.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ConfigError, match="is cut short"):
        read_model_facts(recipe.model)


def test_a_folder_without_weights_says_what_is_missing(recipe: Recipe) -> None:
    (recipe.model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors file"):
        read_model_facts(recipe.model)


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_damaged_config_json_is_told(recipe: Recipe, text: str) -> None:
    (recipe.model / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_model_facts(recipe.model)


def test_a_config_json_that_is_no_mapping_is_told(recipe: Recipe) -> None:
    (recipe.model / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_model_facts(recipe.model)


def test_offload_moves_states_from_the_device_to_main_memory() -> None:
    # 1000 parameters, fp32, 4 ranks, ZeRO-3: 1000 bytes of weights, 1000 of gradients, 2000 of moments a rank.
    states = {"num_frozen": 0, "num_trainable": 1000, "strategy": "zero3", "world_size": 4, "precision": "fp32"}
    here = [(e.weight_bytes, e.gradient_bytes, e.optimizer_bytes, e.offloaded_bytes) for e in offloads(states)]
    assert here == [(1000, 1000, 2000, 0), (1000, 1000, 0, 2000), (0, 1000, 0, 3000)]


def offloads(states: dict[str, Any]) -> list[MemoryEstimate]:
    return [estimate_memory(**states, offload=kind) for kind in ("none", "optimizer", "optimizer_and_parameters")]

"""What is read of a model folder: shapes, geometry under every name, and damage told as such."""

import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from launch.model_facts import read_geometry, read_model_facts
from tests.recipe import Recipe, write_model
from trainer.config.errors import ConfigError


def test_facts_of_a_model_come_from_its_files(recipe: Recipe) -> None:
    facts = read_model_facts(recipe.model)
    assert (facts.num_parameters, facts.context_tokens) == (720, 64)


def test_a_model_in_several_files_is_read_whole(recipe: Recipe) -> None:
    weights = recipe.model / "model.safetensors"
    header = {"head": {"dtype": "F32", "shape": [10, 3], "data_offsets": [0, 120]}}
    write_safetensors(recipe.model / "model-2.safetensors", json.dumps(header).encode(), num_data_bytes=120)
    assert weights.exists()
    assert read_model_facts(recipe.model).num_parameters == 720 + 30


def test_buffers_in_the_file_are_no_parameters(tmp_path: Path) -> None:
    shapes = {
        "h.0.attn.bias": (1, 1, 8, 8),
        "transformer.h.0.attn.masked_bias": (),
        "gpt_neox.layers.0.attention.bias": (1, 1, 8, 8),
        "embeddings.position_ids": (1, 8),
        "model.layers.0.self_attn.rotary_emb.inv_freq": (4,),
        "h.0.attn.c_attn.bias": (24,),
        "encoder.layer.0.attention.self.query.bias": (8,),
    }
    folder = write_model(tmp_path / "model", shapes, context_tokens=8)
    assert set(read_model_facts(folder).shapes) == {
        "h.0.attn.c_attn.bias",
        "encoder.layer.0.attention.self.query.bias",
    }


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    [
        # 32 * 8 = 256 of embeddings; a head of its own has as many again.
        pytest.param({"model_type": "gpt2"}, 256, id="tied by the type's default"),
        pytest.param({"model_type": "llama"}, 512, id="untied by the type's default"),
        pytest.param({"model_type": "llama", "tie_word_embeddings": True}, 256, id="tied as config.json says"),
        pytest.param({"model_type": "opt", "tie_word_embeddings": False}, 512, id="untied as config.json says"),
        pytest.param({}, 512, id="unknown type"),
    ],
)
def test_a_tied_head_that_is_stored_counts_once(tmp_path: Path, config: dict[str, Any], num_parameters: int) -> None:
    shapes = {"model.embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8)}
    folder = write_model(tmp_path / "model", shapes, context_tokens=8)
    (folder / "config.json").write_text(json.dumps(config))
    assert read_model_facts(folder).num_parameters == num_parameters


def test_a_tied_head_without_its_embeddings_is_the_one_that_counts(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {"lm_head.weight": (32, 8)}, context_tokens=8)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert read_model_facts(folder).num_parameters == 256


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        # RoBERTa numbers positions from pad_token_id + 1 = 2: of 514, 512 are left.
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "opt", "max_position_embeddings": 2048}, 2048),
        ({}, None),
    ],
)
def test_the_context_is_what_fits_into_the_positions(
    tmp_path: Path, config: dict[str, Any], tokens: int | None
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    assert read_model_facts(folder).context_tokens == tokens


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 172,
    "vocab_size": 1000,
    "hidden_act": "silu",
}


def geometry_of(config: dict[str, Any], *keys: str) -> tuple[Any, ...]:
    geometry = read_geometry(config)
    assert geometry is not None
    return tuple(asdict(geometry)[key] for key in keys)


SIZE_KEYS = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size")


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (LLAMA, (64, 3, 4, 2, 16, 172, 1000)),
        ({**LLAMA, "model_type": "qwen3", "head_dim": 32}, (64, 3, 4, 2, 32, 172, 1000)),
        # n_inner null: 4 * 64.
        (
            {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": None, "vocab_size": 1000},
            (64, 3, 4, 4, 16, 256, 1000),
        ),
        (
            {
                "model_type": "opt",
                "hidden_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "ffn_dim": 200,
                "vocab_size": 1000,
            },
            (64, 3, 4, 4, 16, 200, 1000),
        ),
        (
            {"model_type": "distilbert", "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 200, "vocab_size": 1000},
            (64, 3, 4, 4, 16, 200, 1000),
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_sizes_are_found_under_the_names_of_each_family(config: dict[str, Any], sizes: tuple[int, ...]) -> None:
    assert geometry_of(config, *SIZE_KEYS) == sizes


def test_what_config_json_leaves_out_is_the_default_of_its_type() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 1000}
    keys = ("activation", "dropout", "attention_dropout", "gated_mlp", "tied_head")
    assert geometry_of(gpt2, *keys) == ("gelu_new", 0.1, 0.1, False, True)
    assert geometry_of({**gpt2, "attn_pdrop": 0.0, "activation_function": "relu"}, *keys[:3]) == ("relu", 0.1, 0.0)
    assert geometry_of(LLAMA, *keys) == ("silu", 0.0, 0.0, True, False)


def test_opt_may_have_embeddings_narrower_than_its_layers() -> None:
    opt = {**LLAMA, "model_type": "opt", "ffn_dim": 200}
    assert geometry_of(opt, "embedding_size") == (64,)
    assert geometry_of({**opt, "word_embed_proj_dim": 32}, "embedding_size") == (32,)


@pytest.mark.parametrize(
    "config",
    [
        {"max_position_embeddings": 64},
        {**LLAMA, "model_type": "mamba"},
        {name: value for name, value in LLAMA.items() if name != "vocab_size"},
        {**LLAMA, "num_attention_heads": 0},
        {**LLAMA, "hidden_size": "64"},
    ],
    ids=["no type", "unknown type", "no vocabulary", "no heads", "text for a number"],
)
def test_a_geometry_that_is_not_told_is_unknown(config: dict[str, Any]) -> None:
    assert read_geometry(config) is None


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

"""What is known of a model without loading it: config.json and the headers of its safetensors files. No torch.

Names and default values are those of transformers; a family that is not listed here has no geometry, and what depends
on it stays unknown.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config.errors import ConfigError

Family = Literal["llama", "gpt2", "opt", "bert", "distilbert"]
"""Types of models whose layers are built alike."""

_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), "llama"),
    "gpt2": "gpt2",
    "opt": "opt",
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), "bert"),
    "distilbert": "distilbert",
}
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")
"""Types that number positions from pad_token_id + 1: so many fewer tokens fit."""

_UNTIED = ("llama", "mistral", "qwen2", "qwen3")
"""Types whose head has weights of its own where config.json does not say."""

# Buffers that old files hold: GPT-2's causal masks, position numbers, rotary frequencies. They are no parameters.
_BUFFER = re.compile(r"\.(?:attn|attention)\.(?:bias|masked_bias)$|(?:^|\.)(?:position_ids|token_type_ids|inv_freq)$")

_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "dim"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"),
    "vocab_size": ("vocab_size",),
    "embedding_size": ("word_embed_proj_dim",),
    "activation": ("hidden_activation", "hidden_act", "activation_function", "activation"),
    "dropout": ("hidden_dropout_prob", "resid_pdrop", "dropout"),
    "attention_dropout": ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout"),
}
_DEFAULTS: dict[Family, dict[str, Any]] = {
    "llama": {"activation": "silu", "dropout": 0.0, "attention_dropout": 0.0},
    "gpt2": {"activation": "gelu_new", "dropout": 0.1, "attention_dropout": 0.1},
    "opt": {"activation": "relu", "dropout": 0.1, "attention_dropout": 0.0},
    "bert": {"activation": "gelu", "dropout": 0.1, "attention_dropout": 0.1},
    "distilbert": {"activation": "gelu", "dropout": 0.1, "attention_dropout": 0.1},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Widths and counts of a transformer."""

    model_type: str
    family: Family
    hidden_size: int
    """Width of the residual stream."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    """Heads of keys and values: fewer than num_heads where queries share them (GQA)."""

    head_dim: int
    intermediate_size: int
    """Width inside the MLP."""

    vocab_size: int
    embedding_size: int
    """Width of the token embeddings; other than hidden_size in some OPT models."""

    activation: str
    """Name of the MLP's activation, as transformers knows it."""

    dropout: float
    """Probability on the outputs of attention and MLP."""

    attention_dropout: float
    """Probability on the attention scores."""

    gated_mlp: bool
    """act(gate(x)) * up(x) instead of act(up(x))."""

    tied_head: bool
    """The output head shares the weights of the token embeddings."""

    @property
    def attention_width(self) -> int:
        """Elements of the queries of one token."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of the keys of one token."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the plan needs to know of a model."""

    folder: Path
    model_type: str
    """As config.json says; empty where it does not."""

    context_tokens: int | None
    """Longest sequence of the model; None where config.json does not say."""

    shapes: dict[str, tuple[int, ...]]
    """Shape of each stored parameter, by name; buffers and a tied head are left out."""

    geometry: Geometry | None
    """None for a family that is not known, or where config.json lacks a number."""

    @property
    def num_parameters(self) -> int:
        """Stored parameters; tied weights are stored once."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_model_facts(folder: Path) -> ModelFacts:
    """Read config.json and the safetensors headers of a model folder.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {folder}/config.json cannot be read ({error}). Give a model folder.") from None
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"model.path: {folder} holds no *.safetensors file. Convert its weights first.")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weights:
        shapes |= _shapes_in(path)
    has_embeddings = any(name.endswith(("embed_tokens.weight", "wte.weight")) for name in shapes)
    is_tied = _head_is_tied(config) and has_embeddings
    return ModelFacts(
        folder=folder,
        model_type=str(config.get("model_type", "")),
        context_tokens=_context_tokens(config),
        shapes={name: shape for name, shape in shapes.items() if not _is_no_parameter(name, tied=is_tied)},
        geometry=read_geometry(config),
    )


def read_geometry(config: dict[str, Any]) -> Geometry | None:
    """The geometry that config.json describes, under the names of any known family."""
    model_type = str(config.get("model_type", ""))
    family = _FAMILIES.get(model_type)
    if family is None:
        return None
    given = {name: value for name, value in config.items() if value is not None}
    found: dict[str, Any] = {
        key: next(given[name] for name in names if name in given)
        for key, names in _NAMES.items()
        if not given.keys().isdisjoint(names)
    }
    try:
        values = {
            "num_kv_heads": found["num_heads"],
            "head_dim": found["hidden_size"] // found["num_heads"],
            "intermediate_size": 4 * found["hidden_size"],
            "embedding_size": found["hidden_size"],
            **_DEFAULTS[family],
            **found,
        }
        gated, tied = family == "llama", _head_is_tied(config)
        return Geometry(model_type=model_type, family=family, gated_mlp=gated, tied_head=tied, **values)
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _context_tokens(config: dict[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and config.get("model_type") in _POSITIONS_AFTER_PADDING:
        return int(positions) - int(config.get("pad_token_id", 1)) - 1
    return positions


def _head_is_tied(config: dict[str, Any]) -> bool:
    model_type = config.get("model_type")
    return bool(config.get("tie_word_embeddings", model_type in _FAMILIES and model_type not in _UNTIED))


def _is_no_parameter(name: str, *, tied: bool) -> bool:
    return bool(_BUFFER.search(name)) or (tied and name == "lm_head.weight")


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Header of a safetensors file: 8 bytes of length (little endian), then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        num_bytes = 8 + length + max(entry["data_offsets"][1] for entry in tensors.values())
        shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error, MemoryError, OverflowError):
        raise ConfigError(f"model.path: {path} is not a safetensors file, or is cut short. Copy it again.") from None
    if path.stat().st_size < num_bytes:
        raise ConfigError(
            f"model.path: {path} is cut short: {path.stat().st_size} of {num_bytes} bytes. Copy it again."
        )
    return shapes

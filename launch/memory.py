"""Model states per device, from config.json and safetensors headers alone. No torch, no weights read.

Formulas: Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), section 3: with mixed-precision Adam
2 bytes of weights, 2 of gradients and K = 12 of optimizer states for each parameter; stage 1 divides the
optimizer states by the number of ranks, stage 2 also the gradients, stage 3 also the weights.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from trainer.config.errors import ConfigError
from trainer.config.plan import MemoryEstimate
from trainer.config.schema import LoraSection, Offload, Precision, Quantisation, Strategy

_EMBEDDING_AND_HEAD = ("embed_tokens", "lm_head", "wte", "wpe", "embeddings", "embed_positions", "score", "classifier")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the plan needs to know of a model."""

    folder: Path
    context_tokens: int | None
    """Longest sequence of the model; None where config.json does not say."""

    shapes: dict[str, tuple[int, ...]]
    """Shape of each stored tensor, by name."""

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
    context = config.get("max_position_embeddings", config.get("n_positions"))
    return ModelFacts(folder, context, shapes)


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


def num_lora_parameters(facts: ModelFacts, lora: LoraSection) -> int:
    """Parameters of the adapters: rank * (in + out) for each adapted matrix; DoRA adds one for each output.

    Raises:
        ConfigError: no matrix of the model has one of the target names.
    """
    adapted = [shape for name, shape in facts.shapes.items() if len(shape) == 2 and _is_target(name, lora)]
    if not adapted:
        linear = sorted({name.split(".")[-2] for name, shape in facts.shapes.items() if len(shape) == 2})
        raise ConfigError(
            f"lora.targets: found {lora.targets!r}, but the model has no such layer. Layers with a matrix: "
            f"{', '.join(linear)}."
        )
    magnitudes = sum(rows for rows, _ in adapted) if lora.dora else 0
    return sum(lora.rank * (rows + columns) for rows, columns in adapted) + magnitudes


def _is_target(tensor_name: str, lora: LoraSection) -> bool:
    parts = tensor_name.split(".")
    if len(parts) < 2 or parts[-1] != "weight":
        return False
    if lora.targets == "all-linear":
        return not any(word in parts for word in _EMBEDDING_AND_HEAD)
    return parts[-2] in lora.targets


def base_weight_bytes(facts: ModelFacts, quantisation: Quantisation) -> int | None:
    """Bytes of a quantised base; None where it is not quantised.

    Embeddings, norms and output head stay in fp32. int8: a byte a weight and an fp32 scale a row (Dettmers et al.
    2022, arXiv 2208.07339). int4: half a byte a weight and an fp32 scale for each 64 (NF4, arXiv 2305.14314).
    """
    if quantisation == "none":
        return None
    total = 0
    for name, shape in facts.shapes.items():
        size = math.prod(shape)
        if len(shape) != 2 or any(word in name.split(".") for word in _EMBEDDING_AND_HEAD):
            total += 4 * size
        elif quantisation == "int8":
            total += size + 4 * shape[0]
        else:
            total += math.ceil(size / 2) + 4 * math.ceil(size / 64)
    return total


def estimate_memory(
    *,
    num_frozen: int,
    num_trainable: int,
    strategy: Strategy,
    world_size: int,
    precision: Precision,
    offload: Offload = "none",
    frozen_bytes: int | None = None,
) -> MemoryEstimate:
    """Model states of one device under a strategy, and what ZeRO-Offload moves to main memory.

    single and ddp keep fp32 weights under bf16 (autocast); ZeRO keeps bf16 weights and fp32 masters.
    """
    stage = int(strategy.removeprefix("zero")) if strategy.startswith("zero") else 0
    half = precision == "bf16" and stage > 0
    weight_width, gradient_width, optimizer_width = (2, 2, 12) if half else (4, 4, 8)
    whole_bytes = num_trainable * weight_width + (num_frozen * weight_width if frozen_bytes is None else frozen_bytes)
    weight_bytes = whole_bytes // (world_size if stage >= 3 else 1)
    optimizer_bytes = num_trainable * optimizer_width // (world_size if stage >= 1 else 1)
    moved_optimizer = optimizer_bytes if stage and offload != "none" else 0
    moved_weights = weight_bytes if stage == 3 and offload == "optimizer_and_parameters" else 0
    return MemoryEstimate(
        num_parameters=num_frozen + num_trainable,
        num_trainable_parameters=num_trainable,
        weight_bytes=weight_bytes - moved_weights,
        gradient_bytes=num_trainable * gradient_width // (world_size if stage >= 2 else 1),
        optimizer_bytes=optimizer_bytes - moved_optimizer,
        offloaded_bytes=moved_optimizer + moved_weights,
    )

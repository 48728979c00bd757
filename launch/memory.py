"""Memory of one device at the peak of a step, from config.json and safetensors headers alone. No torch.

Model states follow Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), section 3: with mixed-precision Adam 2 bytes of
weights, 2 of gradients and K = 12 of optimizer states for each parameter; stage 1 divides the optimizer states by the
number of ranks, stage 2 also the gradients, stage 3 also the weights.
"""

import math
from collections.abc import Iterable

from launch.activations import activation_bytes, logit_bytes
from launch.model_facts import ModelFacts
from launch.parameters import Parameters, is_transposed, read_parameters
from trainer.config.deepspeed import BUCKET_ELEMENTS, MAX_LIVE_PARAMETERS
from trainer.config.module_names import HEADS
from trainer.config.plan import Device, MemoryEstimate
from trainer.config.schema import SMALLEST_8BIT_ELEMENTS, Offload, Precision, Quantisation, RunConfig, Strategy

LARGEST_EVALUATION_BATCH = 32
EVALUATION_LOGIT_BYTES = 2 * 2**30

BLOCK_8BIT_ELEMENTS = 256
"""Elements of a moment that share a scale."""

CODEBOOK_BYTES = 2 * 256 * 4
"""The 256 values that a byte stands for, once for each moment."""

_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "embed_positions", "embeddings")


def estimate_memory(
    config: RunConfig,
    facts: ModelFacts,
    *,
    strategy: Strategy,
    world_size: int,
    examples_per_microbatch: int,
    activation_checkpointing: bool,
    device: Device = "cuda",
) -> MemoryEstimate:
    """Everything that one device holds at the peak of a step, between forward and backward of the last micro-batch.

    The optimizer's own temporaries are not counted: they come when activations and logits are gone.

    Args:
        device: a CPU keeps all scores of attention under dropout, and wider masks, but smaller buckets of ZeRO.

    Raises:
        ConfigError: `freeze` or `lora` names nothing of the model.
    """
    parameters = read_parameters(config, facts)
    precision = config.training.precision
    states = model_states(
        num_frozen=parameters.num_frozen,
        num_trainable=parameters.num_trainable,
        strategy=strategy,
        world_size=world_size,
        precision=precision,
        offload=config.layout.offload,
        frozen_bytes=_frozen_bytes(config, facts, parameters, strategy),
        moment_bytes=(
            moments_8bit_bytes(parameters.trainable_elements) if config.training.optimizer == "adamw_8bit" else None
        ),
    )
    buffers = communication_bytes(
        strategy=strategy,
        precision=precision,
        device=device,
        num_parameters=states.num_parameters,
        num_trainable=states.num_trainable_parameters,
        largest=max(math.prod(shape) for shape in parameters.base.values()),
    )
    known = states.model_copy(update={"model_type": facts.model_type, "communication_bytes": buffers})
    if facts.geometry is None:
        return known
    kept = activation_bytes(
        config,
        facts.geometry,
        strategy=strategy,
        examples_per_microbatch=examples_per_microbatch,
        activation_checkpointing=activation_checkpointing,
        device=device,
    )
    logits = logit_bytes(config, facts.geometry, examples_per_microbatch=examples_per_microbatch)
    batch = examples_per_evaluation_batch(config, facts)
    measured = logit_bytes(config, facts.geometry, examples_per_microbatch=batch)
    return known.model_copy(update={"activation_bytes": kept, "logit_bytes": logits, "evaluation_bytes": measured})


def examples_per_evaluation_batch(config: RunConfig, facts: ModelFacts) -> int:
    """What was asked, or the largest power of two up to 32 whose logits fit; whatever the number of ranks."""
    asked = config.evaluation.examples_per_batch
    if asked != "auto" or facts.geometry is None:
        return LARGEST_EVALUATION_BATCH if asked == "auto" else asked
    one = logit_bytes(config, facts.geometry, examples_per_microbatch=1)
    fitting = max(1, min(LARGEST_EVALUATION_BATCH, EVALUATION_LOGIT_BYTES // one))
    return 1 << (fitting.bit_length() - 1)


def _frozen_bytes(config: RunConfig, facts: ModelFacts, parameters: Parameters, strategy: Strategy) -> int | None:
    """Bytes of weights without gradients, where they are kept otherwise than the trained ones."""
    if config.model.quantisation != "none":
        return quantised_base_bytes(parameters, facts, config.model.quantisation)
    narrow = config.method == "lora" and config.training.precision != "fp32" and not strategy.startswith("zero")
    return 2 * parameters.num_frozen if narrow else None


def quantised_base_bytes(parameters: Parameters, facts: ModelFacts, quantisation: Quantisation) -> int:
    """Bytes of a quantised base.

    Embeddings, norms and heads stay in fp32. int8: a byte a weight and an fp32 scale an output (Dettmers et al. 2022,
    arXiv 2208.07339). int4: half a byte a weight and an fp32 scale for each 64 (NF4, arXiv 2305.14314).
    """
    total = 0
    for name, shape in parameters.base.items():
        size = math.prod(shape)
        if len(shape) != 2 or {*_EMBEDDINGS, *HEADS} & set(name.split(".")):
            total += 4 * size
        elif quantisation == "int8":
            total += size + 4 * shape[1 if is_transposed(facts, name) else 0]
        else:
            total += math.ceil(size / 2) + 4 * math.ceil(size / 64)
    return total


def moments_8bit_bytes(trainable_elements: Iterable[int]) -> int:
    """Both moments of bitsandbytes' AdamW: a byte an element and an fp32 scale for each 256 (Dettmers et al. 2022,
    arXiv 2110.02861); fp32 in small tensors."""
    sizes = list(trainable_elements)
    large = [size for size in sizes if size >= SMALLEST_8BIT_ELEMENTS]
    small = sum(size for size in sizes if size < SMALLEST_8BIT_ELEMENTS)
    scales = sum(math.ceil(size / BLOCK_8BIT_ELEMENTS) for size in large)
    return 2 * sum(large) + 2 * 4 * scales + 2 * 4 * small + (CODEBOOK_BYTES if large else 0)


def model_states(
    *,
    num_frozen: int,
    num_trainable: int,
    strategy: Strategy,
    world_size: int,
    precision: Precision,
    offload: Offload = "none",
    frozen_bytes: int | None = None,
    moment_bytes: int | None = None,
) -> MemoryEstimate:
    """Weights, gradients and optimizer states of one device, and what ZeRO-Offload moves to main memory.

    single and ddp keep what they train in fp32 (16 bits are autocast): 4 + 4 + 8 bytes. ZeRO keeps 16-bit weights and
    gradients and 12 bytes of fp32 master weights and moments; in fp32 DeepSpeed 0.19 copies the masters all the same.

    Args:
        frozen_bytes: of all weights without gradients; None where they are as wide as the trained ones.
        moment_bytes: of an optimizer other than AdamW.
    """
    stage = int(strategy.removeprefix("zero")) if strategy.startswith("zero") else 0
    width = 2 if precision != "fp32" and stage else 4
    moments = 8 * num_trainable if moment_bytes is None else moment_bytes
    whole_bytes = num_trainable * width + (num_frozen * width if frozen_bytes is None else frozen_bytes)
    weight_bytes = whole_bytes // (world_size if stage >= 3 else 1)
    optimizer_bytes = (moments + (4 * num_trainable if stage else 0)) // (world_size if stage >= 1 else 1)
    moved_optimizer = optimizer_bytes if stage and offload != "none" else 0
    moved_weights = weight_bytes if stage == 3 and offload == "optimizer_and_parameters" else 0
    return MemoryEstimate(
        num_parameters=num_frozen + num_trainable,
        num_trainable_parameters=num_trainable,
        weight_bytes=weight_bytes - moved_weights,
        gradient_bytes=num_trainable * width // (world_size if stage >= 2 else 1),
        optimizer_bytes=optimizer_bytes - moved_optimizer,
        offloaded_bytes=moved_optimizer + moved_weights,
    )


def communication_bytes(
    *, strategy: Strategy, precision: Precision, device: Device, num_parameters: int, num_trainable: int, largest: int
) -> int:
    """Buffers of ZeRO's collectives, in the width of computation.

    A bucket of gradients on their way, two where they travel beside the backward pass (stages 1 and 2 on cuda).
    Stage 3 also gathers weights: those in use, at least the largest one, and a bucket ahead of them. Stages 1 and 2
    gather in place, and DDP's gradients live in its buckets.
    """
    if not strategy.startswith("zero"):
        return 0
    width = 4 if precision == "fp32" else 2
    bucket = min(BUCKET_ELEMENTS, num_trainable)
    if strategy != "zero3":
        return width * bucket * (2 if device == "cuda" else 1)
    return width * (bucket + max(largest, min(num_parameters, MAX_LIVE_PARAMETERS + BUCKET_ELEMENTS)))


def readable_bytes(size: int) -> str:
    """`1.50 GiB`, or MiB where it is less than one."""
    unit, divisor = ("GiB", 2**30) if size >= 2**30 else ("MiB", 2**20)
    return f"{size / divisor:,.2f} {unit}"

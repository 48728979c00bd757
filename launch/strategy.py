"""From what was asked and what is here to device, ranks, strategy and batch split, with a reason for each.

Pure: the same request on the same machine gives the same answer.
"""

import math
from dataclasses import dataclass

from launch.machine import Machine
from launch.memory import ModelFacts, base_weight_bytes, estimate_memory, num_lora_parameters
from trainer.config.errors import ConfigError
from trainer.config.freezing import frozen_names
from trainer.config.plan import Decision, Device, MemoryEstimate
from trainer.config.schema import Offload, RunConfig, Strategy

USABLE_MEMORY_SHARE = 0.7
"""Share of a device's memory that model states may take; the rest is for activations and buffers."""

LARGEST_AUTO_MICROBATCH = 16
GIB = 2**30

_ABLE_TO_OFFLOAD: dict[Offload, tuple[Strategy, ...]] = {
    "none": ("single", "ddp", "zero1", "zero2", "zero3"),
    "optimizer": ("zero1", "zero2", "zero3"),
    "optimizer_and_parameters": ("zero3",),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run is spread over devices, and why."""

    device: Device
    world_size: int
    strategy: Strategy
    examples_per_microbatch: int
    microbatches_per_step: int
    memory: MemoryEstimate
    decisions: tuple[Decision, ...]


def choose_layout(config: RunConfig, *, machine: Machine, facts: ModelFacts) -> Layout:
    """Decide device, ranks, strategy and micro-batch.

    Raises:
        ConfigError: what was asked cannot be done here, or does not divide.
    """
    decisions: list[Decision] = []
    _refuse_distributed_quantisation(config)
    device = _choose_device(config, machine, decisions)
    if config.model.quantisation == "int4" and device == "cpu":
        # bitsandbytes 0.50 repacks 4-bit weights for evaluation on a CPU, and asserts that every layer's rows divide.
        raise ConfigError("model.quantisation: found int4 on cpu, which bitsandbytes cannot evaluate. Set it to int8.")
    world_size = _choose_world_size(config, machine, device, decisions)
    estimates = _estimates(config, facts, world_size)
    strategy = _choose_strategy(config, machine, device, world_size, estimates, decisions)
    microbatch = _choose_microbatch(config, world_size, decisions)
    per_rank = config.training.examples_per_step // world_size
    return Layout(
        device, world_size, strategy, microbatch, per_rank // microbatch, estimates[strategy], tuple(decisions)
    )


def _refuse_distributed_quantisation(config: RunConfig) -> None:
    """A quantised base under ZeRO-3 trains to a wrong loss without a word (bitsandbytes issue 1451)."""
    quantisation, layout = config.model.quantisation, config.layout
    if quantisation != "none" and (layout.strategy not in ("auto", "single") or layout.processes not in ("auto", 1)):
        raise ConfigError(
            f"model.quantisation: found {quantisation} with layout.strategy {layout.strategy} and layout.processes "
            f"{layout.processes}: a quantised base trains on one process. Set layout.strategy=single and "
            "layout.processes=1, or model.quantisation=none."
        )


def _choose_device(config: RunConfig, machine: Machine, decisions: list[Decision]) -> Device:
    asked = config.layout.device
    if asked == "cuda" and machine.num_gpus == 0:
        why = f" ({machine.gpu_error})" if machine.gpu_error else ""
        raise ConfigError(f"layout.device: found cuda, but no NVIDIA GPU is visible here{why}. Set layout.device=cpu.")
    if asked != "auto":
        return asked
    if machine.gpu_error:
        raise ConfigError(
            f"layout.device: auto, and an NVIDIA driver is loaded, but its GPUs do not answer ({machine.gpu_error}). "
            "Mend it, or set layout.device=cpu."
        )
    device: Device = "cuda" if machine.num_gpus else "cpu"
    reason = f"{machine.num_gpus} GPU(s) visible" if machine.num_gpus else "no NVIDIA GPU is visible"
    decisions.append(Decision(field="layout.device", asked="auto", used=device, reason=reason))
    return device


def _choose_world_size(config: RunConfig, machine: Machine, device: Device, decisions: list[Decision]) -> int:
    asked = config.layout.processes
    if config.layout.strategy == "single" and asked not in (1, "auto"):
        raise ConfigError(
            f"layout.processes: found {asked} with layout.strategy single, wanted 1. Use ddp or zero1, zero2, zero3."
        )
    if asked == "auto":
        alone = "strategy single" if config.layout.strategy == "single" else ""
        alone = alone or ("a quantised base trains on one process" if config.model.quantisation != "none" else "")
        used = machine.num_gpus if device == "cuda" and not alone else 1
        reason = alone or f"one rank for each {device} device"
        decisions.append(Decision(field="layout.processes", asked="auto", used=str(used), reason=reason))
        return used
    if device == "cuda" and asked > machine.num_gpus:
        raise ConfigError(
            f"layout.processes: found {asked}, but {machine.num_gpus} GPU(s) are visible. "
            f"Set layout.processes={machine.num_gpus} or auto."
        )
    return asked


def _estimates(config: RunConfig, facts: ModelFacts, world_size: int) -> dict[Strategy, MemoryEstimate]:
    base = facts.num_parameters
    if config.method == "lora":
        frozen, trainable = base, num_lora_parameters(facts, config.lora_or_default)
    else:
        frozen = sum(math.prod(facts.shapes[name]) for name in frozen_names(facts.shapes, config.freeze))
        trainable = base - frozen
    strategies: tuple[Strategy, ...] = ("single", "ddp", "zero1", "zero2", "zero3")
    return {
        strategy: estimate_memory(
            num_frozen=frozen,
            num_trainable=trainable,
            strategy=strategy,
            world_size=world_size,
            precision=config.training.precision,
            offload=config.layout.offload,
            frozen_bytes=base_weight_bytes(facts, config.model.quantisation),
        )
        for strategy in strategies
    }


def _choose_strategy(
    config: RunConfig,
    machine: Machine,
    device: Device,
    world_size: int,
    estimates: dict[Strategy, MemoryEstimate],
    decisions: list[Decision],
) -> Strategy:
    asked, able = config.layout.strategy, _ABLE_TO_OFFLOAD[config.layout.offload]
    if asked != "auto" and asked not in able:
        raise ConfigError(
            f"layout.offload: found {config.layout.offload} with layout.strategy {asked}, which cannot. "
            f"Set layout.strategy to one of {', '.join(able)}, or layout.offload=none."
        )
    if asked != "auto":
        return asked
    per_rank = min(machine.gpu_memory_bytes) if device == "cuda" else machine.memory_bytes // world_size
    budget = int(USABLE_MEMORY_SHARE * per_rank)
    simple: tuple[Strategy, ...] = ("single",) if world_size == 1 else ("ddp", "zero1", "zero2", "zero3")
    order = [name for name in simple if name in able] or list(able)
    used = next((name for name in order if estimates[name].model_state_bytes <= budget), order[-1])
    need = estimates[used].model_state_bytes
    fits = "fit in" if need <= budget else "DO NOT FIT in"
    reason = (
        f"model states of {need / GIB:.2f} GiB a rank {fits} {budget / GIB:.1f} GiB "
        f"({USABLE_MEMORY_SHARE:.0%} of a device)"
    )
    decisions.append(Decision(field="layout.strategy", asked="auto", used=used, reason=reason))
    return used


def _choose_microbatch(config: RunConfig, world_size: int, decisions: list[Decision]) -> int:
    total, asked = config.training.examples_per_step, config.training.examples_per_device
    if total % world_size:
        lower, upper = total - total % world_size, total + world_size - total % world_size
        choices = " or ".join(str(number) for number in (lower, upper) if number)
        raise ConfigError(
            f"training.examples_per_step: found {total}, which does not divide by {world_size} ranks. "
            f"Set it to {choices}, or change layout.processes."
        )
    per_rank = total // world_size
    if asked == "auto":
        used = max(n for n in range(1, min(per_rank, LARGEST_AUTO_MICROBATCH) + 1) if per_rank % n == 0)
        reason = f"{per_rank} examples a rank and step, in micro-batches of at most {LARGEST_AUTO_MICROBATCH}"
        decisions.append(Decision(field="training.examples_per_device", asked="auto", used=str(used), reason=reason))
        return used
    if per_rank % asked:
        divisors = ", ".join(str(n) for n in range(1, per_rank + 1) if per_rank % n == 0)
        raise ConfigError(
            f"training.examples_per_device: found {asked}, but each rank's {per_rank} examples a step "
            f"({total} / {world_size} ranks) do not divide by it. Set it to one of {divisors}."
        )
    return asked

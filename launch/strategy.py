"""From what was asked and what is here to device, ranks, strategy and batch split, with a reason for each.

Pure: the same request on the same machine gives the same answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from launch.batch import check_batch, rows_per_rank
from launch.compatibility import Combination, refusal
from launch.machine import Machine
from launch.memory import estimate_memory, examples_per_evaluation_batch, readable_bytes
from launch.model_facts import ModelFacts
from trainer.config.errors import ConfigError
from trainer.config.plan import Decision, Device, MemoryEstimate
from trainer.config.schema import RunConfig, Strategy

USABLE_MEMORY_SHARE = 0.9
"""Share of a device's memory that a step may take; the rest is for the runtime and fragmentation."""

LARGEST_AUTO_MICROBATCH = 16
GIB = 2**30
SINGLE: tuple[Strategy, ...] = ("single", "zero1", "zero2", "zero3")
SEVERAL: tuple[Strategy, ...] = ("ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a run is spread over devices, and why."""

    config: RunConfig
    """The configuration in force: what was asked, or the fallback."""

    device: Device
    world_size: int
    strategy: Strategy
    examples_per_microbatch: int
    microbatches_per_step: int | None
    activation_checkpointing: bool
    memory: MemoryEstimate
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to spread a step over the devices."""

    strategy: Strategy
    microbatch: int
    checkpointing: bool
    memory: MemoryEstimate


def choose_layout(config: RunConfig, *, machine: Machine, facts: ModelFacts) -> Layout:
    """Decide device, ranks, strategy, micro-batch and activation checkpointing.

    Raises:
        ConfigError: what was asked cannot be done here, does not divide, or does not fit.
    """
    decisions: list[Decision] = []
    device = _choose_device(config, machine, decisions)
    world_size = _choose_world_size(config, machine, device, decisions)
    check_batch(config, world_size)
    budget = _budget_bytes(config, machine, device, world_size)
    tried: list[_Candidate] = []
    chosen = None
    for candidate in _candidates(config, facts, device=device, world_size=world_size):
        tried.append(candidate)
        if candidate.memory.total_bytes <= budget:
            chosen = candidate
            break
    if chosen is None:
        config, chosen = _fall_back(config, facts, tried, device, world_size, budget, decisions)
    decisions += _reasons(config, facts, chosen, device=device, world_size=world_size, budget=budget)
    rows = config.rows_per_step
    return Layout(
        config=config,
        device=device,
        world_size=world_size,
        strategy=chosen.strategy,
        examples_per_microbatch=chosen.microbatch,
        microbatches_per_step=rows // world_size // chosen.microbatch if rows is not None else None,
        activation_checkpointing=chosen.checkpointing,
        memory=chosen.memory,
        decisions=tuple(decisions),
    )


def _candidates(config: RunConfig, facts: ModelFacts, *, device: Device, world_size: int) -> Iterator[_Candidate]:
    """Ways that fit the request, the fastest first.

    Recomputing activations costs a third of the time, small micro-batches less, the higher ZeRO stages least.
    """
    training, asked = config.training, config.layout.strategy
    strategies = [asked] if asked != "auto" else list(SINGLE if world_size == 1 else SEVERAL)
    able = [strategy for strategy in strategies if _refused(config, strategy, device) is None]
    if not able:
        raise ConfigError(_refused(config, strategies[0], device))
    if asked == "auto" and world_size == 1 and "single" in able:
        able = ["single"]  # on one device ZeRO only adds work; what does not fit falls back
    quantised = config.model.quantisation != "none"
    asked_checkpointing = training.activation_checkpointing
    recompute = ([True] if quantised else [False, True]) if asked_checkpointing == "auto" else [asked_checkpointing]
    share = rows_per_rank(config, world_size)
    largest = min(share or LARGEST_AUTO_MICROBATCH, LARGEST_AUTO_MICROBATCH)
    sizes = [training.examples_per_device] if training.examples_per_device != "auto" else range(largest, 0, -1)
    for checkpointing in recompute:
        for microbatch in (size for size in sizes if share is None or share % size == 0):
            for strategy in able:
                memory = estimate_memory(
                    config,
                    facts,
                    strategy=strategy,
                    world_size=world_size,
                    examples_per_microbatch=microbatch,
                    activation_checkpointing=checkpointing,
                    device=device,
                )
                yield _Candidate(strategy, microbatch, checkpointing, memory)


def _refused(config: RunConfig, strategy: Strategy, device: Device) -> str | None:
    """The complaint about a combination that does not work, or None."""
    asked = Combination(
        strategy=strategy,
        offload=config.layout.offload,
        method=config.method,
        quantisation=config.model.quantisation,
        precision=config.training.precision,
        objective=config.objective,
        device=device,
    )
    if (found := refusal(asked)) is not None:
        named = {
            "layout.offload": f"{asked.offload} with layout.strategy {strategy}",
            "model.quantisation": f"{asked.quantisation} with layout.strategy {strategy} on {device}",
            "training.precision": f"{asked.precision} on {device}",
        }[found.key]
        alone = found.nearest.strategy == "single" and config.layout.processes not in ("auto", 1)
        advice = found.advice(asked) + (" layout.processes=1" if alone else "")
        return f"{found.key}: found {named}: {found.reason}. Set {advice}."
    if config.training.optimizer == "adamw_8bit" and strategy not in ("single", "ddp"):
        return (
            f"training.optimizer: found adamw_8bit with layout.strategy {strategy}: ZeRO cuts weights into flat "
            "pieces, so the blocks that share a scale would depend on the number of ranks. "
            "Set training.optimizer=adamw, or layout.strategy=ddp."
        )
    return None


def _fall_back(
    config: RunConfig,
    facts: ModelFacts,
    tried: list[_Candidate],
    device: Device,
    world_size: int,
    budget: int,
    decisions: list[Decision],
) -> tuple[RunConfig, _Candidate]:
    """LoRA over an 8-bit base where one device is at hand and the asked method does not fit it.

    Raises:
        ConfigError: there are several devices, or nothing fits, or the user wants no fallback.
    """
    least = min(tried, key=lambda candidate: candidate.memory.total_bytes)
    need = (
        f"the smallest way needs {readable_bytes(least.memory.total_bytes)} a rank ({least.strategy}, micro-batches of "
        f"{least.microbatch}, activation checkpointing {'on' if least.checkpointing else 'off'}; model states "
        f"{readable_bytes(least.memory.model_state_bytes)}), and {readable_bytes(budget)} may be used"
    )
    smaller = (
        f"{config.model.path} does not fit: {need}. Use more devices, layout.offload, method=lora, or a shorter "
        "data.sequence_length_tokens; layout.memory_per_device_gib sets what a rank may use."
    )
    if world_size > 1 or config.model.quantisation != "none":
        raise ConfigError(f"layout: {smaller}")
    lighter = config.model_copy(
        update={
            "method": "lora",
            "lora": config.lora_or_default,
            "freeze": None,
            "model": config.model.model_copy(update={"quantisation": "int8"}),
            "layout": config.layout.model_copy(update={"strategy": "single", "offload": "none"}),
        }
    )
    light = _candidates(lighter, facts, device=device, world_size=1)
    fitting = next((candidate for candidate in light if candidate.memory.total_bytes <= budget), None)
    if fitting is None:
        raise ConfigError(f"layout: {smaller} LoRA over an 8-bit base does not fit either.")
    offer = f"LoRA over an 8-bit base needs {readable_bytes(fitting.memory.total_bytes)}"
    if config.layout.on_oversize == "refuse":
        raise ConfigError(f"layout.on_oversize: refuse, and {smaller} Or set layout.on_oversize=fallback: {offer}.")
    reason = f"{need}; {offer} (layout.on_oversize: fallback)"
    changes = [
        ("method", config.method, "lora"),
        ("model.quantisation", config.model.quantisation, "int8"),
        ("layout.strategy", config.layout.strategy, "single"),
        ("layout.offload", config.layout.offload, "none"),
        ("freeze", "given" if config.freeze else "none", "none"),
    ]
    changed = [change for change in changes if change[1] != change[2]]
    reasons = [reason, *["goes with it (layout.on_oversize: fallback)"] * (len(changed) - 1)]
    decisions += [
        Decision(field=key, asked=old, used=new, reason=why)
        for (key, old, new), why in zip(changed, reasons, strict=True)
    ]
    return lighter, fitting


def _reasons(
    config: RunConfig, facts: ModelFacts, chosen: _Candidate, *, device: Device, world_size: int, budget: int
) -> Iterator[Decision]:
    """A decision for everything that was left to Retain."""
    need, usable = readable_bytes(chosen.memory.total_bytes), readable_bytes(budget)
    fits = f"{need} a rank of {usable} usable ({USABLE_MEMORY_SHARE:.0%} of a device)"
    if config.layout.strategy == "auto":
        yield Decision(field="layout.strategy", asked="auto", used=chosen.strategy, reason=f"the first to fit: {fits}")
    if config.training.examples_per_device == "auto":
        share, what = rows_per_rank(config, world_size), "packed rows" if config.data.packing else "examples"
        first = f"{share} {what} a rank and step" if share is not None else f"{what} as the steps hold them"
        reason = f"{first}, in micro-batches of at most {LARGEST_AUTO_MICROBATCH} that fit"
        yield Decision(
            field="training.examples_per_device", asked="auto", used=str(chosen.microbatch), reason=f"{reason}: {fits}"
        )
    if config.data.packing and device == "cuda" and config.model.attention in ("sdpa", "eager"):
        reason = "packed rows: attention across examples is computed and masked out; flash_attention_2 and "
        reason += "flex_attention leave it out"
        asked = config.model.attention
        yield Decision(field="model.attention", asked=asked, used=asked, reason=reason)
    if config.training.activation_checkpointing == "auto":
        quantised = "the base is quantised" if config.model.quantisation != "none" else ""
        reason = quantised or ("nothing fits without" if chosen.checkpointing else "the step fits without")
        used = "on" if chosen.checkpointing else "off"
        yield Decision(field="training.activation_checkpointing", asked="auto", used=used, reason=reason)
    if config.evaluation.examples_per_batch == "auto":
        used = str(examples_per_evaluation_batch(config, facts))
        needs = chosen.memory.evaluation_bytes
        reason = "the model's geometry is not known" if needs is None else f"logits of at most {readable_bytes(needs)}"
        yield Decision(field="evaluation.examples_per_batch", asked="auto", used=used, reason=reason)


def _budget_bytes(config: RunConfig, machine: Machine, device: Device, world_size: int) -> int:
    asked = config.layout.memory_per_device_gib
    if asked != "auto":
        return int(USABLE_MEMORY_SHARE * asked * GIB)
    per_rank = min(machine.gpu_memory_bytes) if device == "cuda" else machine.memory_bytes // world_size
    return int(USABLE_MEMORY_SHARE * per_rank)


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

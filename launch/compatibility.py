"""What goes together: one pure function over strategy, offload, method, quantisation, precision, objective, device.

A combination that would fail, or would train wrongly without a word, is refused with its reason and the nearest one
that works. `python -m launch.compatibility` prints docs/compatibility.md.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from trainer.config.plan import Device
from trainer.config.schema import Method, Objective, Offload, Precision, Quantisation, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One cell of the matrix."""

    strategy: Strategy
    offload: Offload
    method: Method
    quantisation: Quantisation
    precision: Precision
    objective: Objective
    device: Device


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a combination does not work."""

    key: str
    """Dotted key of the configuration that is at odds with the others."""

    reason: str
    nearest: Combination
    """The allowed combination that changes least."""

    def advice(self, asked: Combination) -> str:
        """`layout.strategy=single`: the overrides that lead to the nearest combination."""
        old, new = asdict(asked), asdict(self.nearest)
        return " ".join(f"{key}={new[name]}" for name, key in _KEYS.items() if new[name] != old[name])


_KEYS = {
    "strategy": "layout.strategy",
    "offload": "layout.offload",
    "method": "method",
    "quantisation": "model.quantisation",
    "precision": "training.precision",
    "objective": "objective",
    "device": "layout.device",
}


def refusal(asked: Combination) -> Refusal | None:
    """None where the combination works; otherwise the first reason against it, and the nearest one that works."""
    found = _first_reason(asked)
    if found is None:
        return None
    key, reason, nearest = found
    while (again := _first_reason(nearest)) is not None:
        nearest = again[2]
    return Refusal(key, reason, nearest)


def _first_reason(asked: Combination) -> tuple[str, str, Combination] | None:
    """(key, reason, one step towards a combination that works)."""
    zero = asked.strategy.startswith("zero")
    if asked.offload != "none" and not zero:
        step = replace(asked, strategy="zero3" if asked.offload == "optimizer_and_parameters" else "zero2")
        return "layout.offload", "single and ddp keep everything on the device; ZeRO can offload", step
    if asked.offload == "optimizer_and_parameters" and asked.strategy != "zero3":
        step = replace(asked, strategy="zero3")
        return "layout.offload", "only stage 3 partitions parameters, and so can offload them", step
    if asked.quantisation != "none" and asked.method == "full":
        step = replace(asked, method="lora")
        return (
            "model.quantisation",
            "weights in so few bits cannot be trained themselves; LoRA trains beside them",
            step,
        )
    if asked.quantisation != "none" and asked.strategy != "single":
        # ZeRO-3 over a quantised base trains to a wrong loss without a word (bitsandbytes issue 1451).
        step = replace(asked, strategy="single", offload="none")
        return "model.quantisation", "a quantised base trains on one process", step
    if asked.quantisation == "int4" and asked.device == "cpu":
        # bitsandbytes 0.50 repacks 4-bit weights for evaluation on a CPU, and asserts that every layer's rows divide.
        return "model.quantisation", "bitsandbytes cannot evaluate int4 on a CPU", replace(asked, quantisation="int8")
    if asked.precision == "fp16" and asked.device == "cpu":
        step = replace(asked, precision="bf16")
        return "training.precision", "few processors compute in fp16, and those that do lose time to loss scaling", step
    return None


def all_combinations() -> Iterator[Combination]:
    """Every cell."""
    axes = (Strategy, Offload, Method, Quantisation, Precision, Objective, Device)
    for cell in itertools.product(*(get_args(axis) for axis in axes)):
        yield Combination(**dict(zip(_KEYS, cell, strict=True)))


def page() -> str:
    """docs/compatibility.md."""
    reasons: list[str] = []
    tables = [f"## On {device}\n\n{_table(device, reasons)}" for device in get_args(Device)]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    allowed = [cell.device for cell in all_combinations() if refusal(cell) is None]
    counts = (
        f"{allowed.count('cpu')} combinations work on a CPU, {allowed.count('cuda')} on a GPU, and "
        f"{len(list(all_combinations())) - len(allowed)} are refused."
    )
    return "\n\n".join([_INTRODUCTION, counts, *tables, "## Why not", "\n".join(notes)]) + "\n"


_INTRODUCTION = """# What goes together

Made by `python -m launch.compatibility`; do not edit. A cell lists the precisions that work, or the number of the
reason why none does. Both objectives (causal_lm and classification) have the same tables. `retain plan` refuses the
others with that reason and the nearest combination that works. A test trains every combination that works on a CPU
for two steps and compares losses and gradient norms with one process in fp32; the others are marked as needing a GPU.
`training.optimizer: adamw_8bit` works with single and ddp."""


def _table(device: Device, reasons: list[str]) -> str:
    """One row for each way to spread a model, one column for each way to train it."""
    ways = [(method, bits) for method in get_args(Method) for bits in get_args(Quantisation)]
    titles = [f"{method}, {'whole' if bits == 'none' else bits} base" for method, bits in ways]
    rows = [["strategy", "offload", *titles], ["---"] * (2 + len(titles))]
    for strategy, offload in itertools.product(get_args(Strategy), get_args(Offload)):
        spread = {"strategy": strategy, "offload": offload, "device": device}
        cells = [_cell({**spread, "method": method, "quantisation": bits}, reasons) for method, bits in ways]
        rows.append([strategy, offload, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(fixed: dict[str, Any], reasons: list[str]) -> str:
    """Precisions that work, and the numbers of the reasons against the others."""
    verdicts = [
        {
            precision: refusal(Combination(**fixed, precision=precision, objective=objective))
            for precision in get_args(Precision)
        }
        for objective in get_args(Objective)
    ]
    against = [{name: found and (found.key, found.reason) for name, found in verdict.items()} for verdict in verdicts]
    assert all(verdict == against[0] for verdict in against), "objectives differ: the page needs a table for each"
    works = [name for name, found in against[0].items() if found is None]
    why_not = list(dict.fromkeys(f"`{found[0]}`: {found[1]}." for found in against[0].values() if found))
    reasons += [reason for reason in why_not if reason not in reasons]
    numbers = ", ".join(f"({reasons.index(reason) + 1})" for reason in why_not)
    return f"{', '.join(works)} {numbers}".strip()


if __name__ == "__main__":
    print(page(), end="")

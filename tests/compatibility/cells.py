"""Cells of the compatibility matrix as cases for the fleet, and what is wrong with one that was trained."""

from typing import Any

from launch.compatibility import Combination, all_combinations, refusal

# Relative, first loss; relative, every loss and gradient norm of both steps. The reference is one process in fp32.
TOLERANCES = {"fp32": (1e-5, 1e-5), "bf16": (1e-3, 1e-2), "fp16": (1e-4, 2e-3), "int8": (1e-3, 1e-2)}
LABELS = ("objective=classification", "classification.labels=[positive, negative]")

ALLOWED = [cell for cell in all_combinations() if refusal(cell) is None]
ON_CPU = [cell for cell in ALLOWED if cell.device == "cpu"]
ON_GPU = [cell for cell in ALLOWED if cell.device == "cuda"]
REFUSED = [cell for cell in all_combinations() if refusal(cell) is not None]


def name_of(cell: Combination) -> str:
    parts = (cell.strategy, cell.offload, cell.method, cell.quantisation, cell.precision, cell.objective)
    return " ".join(part for part in parts if part != "none")


def overrides_of(cell: Combination, *, processes: int | str) -> tuple[str, ...]:
    return (
        f"layout.strategy={cell.strategy}",
        f"layout.offload={cell.offload}",
        f"layout.processes={processes}",
        f"layout.device={cell.device}",
        f"method={cell.method}",
        f"model.quantisation={cell.quantisation}",
        f"training.precision={cell.precision}",
        *(LABELS if cell.objective == "classification" else ()),
    )


def faults_of(cell: Combination, trained: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with a trained cell; nothing if it takes the steps of one process in fp32."""
    found = trained[name_of(cell)]
    if "steps" not in found:
        return [found["error"].strip().splitlines()[-1]]
    whole = f"single {cell.method} fp32 {cell.objective}"
    reference = trained[whole]["steps"]
    first, all_steps = TOLERANCES["int8" if cell.quantisation == "int8" else cell.precision]
    off = [
        [abs(x - y) / abs(y) for x, y in zip(a, b, strict=True)] for a, b in zip(found["steps"], reference, strict=True)
    ]
    faults = [f"first loss off by {off[0][0]:.1e}"] if off[0][0] > first else []
    largest = max(max(step) for step in off)
    return faults + ([f"a loss or norm off by {largest:.1e}"] if largest > all_steps else [])

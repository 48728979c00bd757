"""Where a report comes from: configuration, code, versions, hardware."""

import importlib.metadata
import platform

import torch

from trainer.config.plan import Plan
from trainer.evaluation.report import JSON

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "bitsandbytes", "datasets", "numpy")


def provenance(plan: Plan, *, step: int) -> dict[str, JSON]:
    """What somebody needs to repeat the measurement."""
    return {
        "model": plan.config.model.path,
        "objective": plan.config.objective,
        "method": plan.config.method,
        "quantisation": plan.config.model.quantisation,
        "decisions": [f"{d.field}: {d.asked} -> {d.used} ({d.reason})" for d in plan.decisions],
        "strategy": plan.strategy,
        "world_size": plan.world_size,
        "precision": plan.config.training.precision,
        "optimizer_steps": step,
        "seed": plan.config.run.seed,
        "config_sha256": plan.config_sha256,
        "retain": plan.code_version,
        **machine(plan.device),
    }


def machine(device: str) -> dict[str, JSON]:
    """Hardware and versions."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }

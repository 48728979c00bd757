"""Where a report comes from: configuration, code, versions, hardware; and the report of a finished run."""

import importlib.metadata
import platform

import torch

from trainer.config.plan import Plan
from trainer.config.run_folder import RunFolder
from trainer.evaluation.forgetting import compare_task
from trainer.evaluation.measure import Measurement
from trainer.evaluation.records import read_records
from trainer.evaluation.report import JSON, build_report, write_report

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "bitsandbytes", "datasets", "numpy")


def provenance(plan: Plan, *, step: int) -> dict[str, JSON]:
    """What somebody needs to repeat the measurement."""
    device = torch.cuda.get_device_name() if plan.device == "cuda" else platform.machine()
    return {
        "model": plan.config.model.path,
        "objective": plan.config.objective,
        "method": plan.config.method,
        "quantisation": plan.config.model.quantisation,
        "decisions": [f"{d.field}: {d.asked} -> {d.used} ({d.reason})" for d in plan.decisions],
        "strategy": plan.strategy,
        "world_size": plan.world_size,
        "device": device,
        "precision": plan.config.training.precision,
        "optimizer_steps": step,
        "seed": plan.config.run.seed,
        "config_sha256": plan.config_sha256,
        "retain": plan.code_version,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def write_run_report(folder: RunFolder, measurement: Measurement, *, plan: Plan, step: int) -> None:
    """Join the records of step 0 and of `step`, and write report.json and report.md.

    Raises:
        InputError: records before and after are not of the same examples.
    """
    rows = [
        compare_task(
            description,
            before=read_records(folder.records(0, task.name)),
            after=read_records(folder.records(step, task.name)),
        )
        for task in measurement.tasks
        for description in task.descriptions
    ]
    write_report(folder.path, build_report(rows, provenance=provenance(plan, step=step)))

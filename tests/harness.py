"""Starts Retain as a user does: as a process, with a time-out, against the demo's real model and data."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.machine import this_machine
from launch.plan import make_plan
from trainer.config.load import load_config
from trainer.config.run_folder import write_text_atomically

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCH_TIMEOUT_SECONDS = 240
"""A launch takes about 20 s; the first one also compiles DeepSpeed's operators."""

SHORT_RUN = (
    "training.num_steps=12",
    "training.warmup_steps=3",
    "training.examples_per_step=64",
    "training.examples_per_device=16",
    "training.weight_decay=0.1",
    "training.max_gradient_norm=0.5",
    "training.log_every_steps=1",
    "checkpoint.every_steps=6",
    "evaluation.max_examples_per_task=8",
)
"""Twelve steps in which clipping, decay and the schedule all matter."""


@dataclass(frozen=True)
class Launched:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str) -> list[str]:
    """The command line of `retain`."""
    return [sys.executable, "-m", "launch", *arguments]


def retain(*arguments: str, timeout: float = LAUNCH_TIMEOUT_SECONDS, cwd: Path = REPOSITORY) -> Launched:
    """Run `retain` to its end. A hang is a failure that says so."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment, check=False
    )
    return Launched(done.returncode, done.stdout, done.stderr)


def train(folder: Path, *overrides: str) -> Launched:
    """A short run of the demo's configuration that must succeed."""
    done = retain("train", "configs/demo.yaml", *SHORT_RUN, f"run.folder={folder}", *overrides)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


def launch_with_worker(script: str, folder: Path, *overrides: str) -> Launched:
    """A short run whose ranks execute a script with a planted fault instead of trainer.worker."""
    machine = this_machine()
    config = load_config(
        REPOSITORY / "configs/demo.yaml",
        overrides=[*SHORT_RUN, f"run.folder={folder}", *overrides],
        variables={"RETAIN_CACHE": str(machine.cache_folder)},
    )
    plan = make_plan(config, machine=machine)
    at = plan.argv.index("trainer.worker")
    write_text_atomically(folder / "plan.json", plan.to_json())
    done = subprocess.run(
        (*plan.argv[: at - 1], str(REPOSITORY / script), *plan.argv[at + 1 :]),
        env={**os.environ, **plan.environment, "PYTHONPATH": str(REPOSITORY)},
        timeout=LAUNCH_TIMEOUT_SECONDS,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    return Launched(done.returncode, done.stdout, done.stderr)


def trajectory(folder: Path) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["train/loss"], row["train/gradient_norm"]) for row in rows if "train/loss" in row]


def largest_deviation(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> float:
    """Largest relative difference of a loss or a gradient norm at any step."""
    assert len(a) == len(b) > 0
    pairs = [(x, y) for step_a, step_b in zip(a, b, strict=True) for x, y in zip(step_a, step_b, strict=True)]
    return max(abs(x - y) / max(abs(x), abs(y)) for x, y in pairs)

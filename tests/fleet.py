"""Many short runs in few launches: cases in, (loss, gradient norm) of every step out."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.machine import this_machine
from launch.operators import prepare_operators
from launch.plan import make_plan
from tests.harness import REPOSITORY, SHORT_RUN
from trainer.config.load import load_config
from trainer.config.plan import Plan

FLEET_TIMEOUT_SECONDS = 540

TINY_RECIPE = """\
run: {{folder: {folder}/unused}}
model: {{path: {model}}}
data:
  sequence_length_tokens: 128
  leakage: "off"
  tasks:
    sentiment:
      train: ${{RETAIN_CACHE}}/demo/tasks/sentiment/heldout.jsonl
      heldout: ${{RETAIN_CACHE}}/demo/tasks/sentiment/heldout.jsonl
      prompt: "{{{{ text }}}}"
      response: " {{{{ label }}}}"
training:
  num_steps: 2
  examples_per_step: 16
  examples_per_device: 4
  learning_rate: 1e-3
  max_gradient_norm: 0.5
  weight_decay: 0.1
layout: {{device: cpu}}
evaluation: {{max_examples_per_task: 4}}
"""
"""Two steps of four micro-batches in which clipping and decay matter."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    overrides: tuple[str, ...]
    config: Path = REPOSITORY / "configs/demo.yaml"
    fault: str = ""
    evaluate: bool = False
    bypass: tuple[str, str] | None = None
    """(key, value) of `training` put into the finished plan, past what the plan would refuse."""

    def plan(self, folder: Path) -> Plan:
        """What the ranks will read."""
        machine = this_machine()
        short = SHORT_RUN if self.config.parent.name == "configs" else ()
        config = load_config(
            self.config,
            overrides=[*short, f"run.folder={folder}", *self.overrides],
            variables={"RETAIN_CACHE": str(machine.cache_folder)},
        )
        plan = make_plan(config, machine=machine)
        if self.bypass is None:
            return plan
        training = plan.config.training.model_copy(update=dict([self.bypass]))
        return plan.model_copy(update={"config": plan.config.model_copy(update={"training": training})})


def tiny_recipe(folder: Path, model: Path) -> Path:
    """A configuration file for a stand-in model."""
    path = folder / f"{model.name}.yaml"
    path.write_text(TINY_RECIPE.format(folder=folder, model=model), encoding="utf-8")
    return path


def run_fleet(cases: Mapping[str, Case], folder: Path, *, processes: int) -> dict[str, dict[str, Any]]:
    """Results by name: {"steps": [[loss, gradient norm], ...]}, or {"error": traceback}."""
    listed, environment = {}, {}
    for number, (name, case) in enumerate(cases.items()):
        plan = case.plan(folder / f"run_{number}")
        assert plan.world_size == processes, f"{name}: {plan.world_size} ranks"
        path = folder / f"plan_{number}.json"
        path.write_text(plan.to_json(), encoding="utf-8")
        listed[name] = {"plan": str(path), "fault": case.fault, "evaluate": case.evaluate}
        environment = plan.environment
    (folder / "cases.json").write_text(json.dumps(listed), encoding="utf-8")
    everything = {**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)}
    prepare_operators(everything, notify=print)
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    done = subprocess.run(
        (sys.executable, *launcher, "-m", "tests.walker", str(folder / "cases.json"), str(folder / "results.json")),
        env=everything,
        cwd=REPOSITORY,
        timeout=FLEET_TIMEOUT_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))

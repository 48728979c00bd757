"""Trains many plans one after another in one launch: `python -m tests.walker cases.json results.json`.

A start of all libraries takes ten seconds, a case one: so a whole matrix is affordable. tests/fleet.py starts it.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from tests.faults import FAULTS
from trainer.config.plan import Plan, read_plan
from trainer.config.run_folder import RunFolder
from trainer.console import Screen
from trainer.data.order_file import OrderNotes, merge_notes
from trainer.distributed import World, end_rank, join_world
from trainer.evaluation.measure import measure
from trainer.loop import StepResult, train
from trainer.run_data import RunData, read_data
from trainer.worker import build_engine

KNOWN: dict[str, RunData] = {}


def data_of(plan: Plan, screen: Screen) -> RunData:
    """The data of a plan, read once for all cases that share it."""
    config = plan.config
    parts = [config.data, config.evaluation, config.training.num_steps, config.training.examples_per_step]
    parts += [config.training.tokens_per_step, config.run.seed, config.labels, plan.model_folder]
    key = repr(parts)
    if key not in KNOWN:
        KNOWN[key] = read_data(plan, screen)
    return KNOWN[key]


def walk(plan: Plan, world: World, screen: Screen, *, evaluate: bool) -> dict[str, Any]:
    """Collective: every step of a plan, without checkpoints; `evaluate`: with a measurement after each step."""
    if plan.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    data = data_of(plan, screen)
    engine = build_engine(plan, world, None, screen)
    folder = RunFolder(Path(plan.run_folder))
    notes = OrderNotes(folder, rank=world.rank, first_step=0, order=data.order, tasks=data.tasks)
    results: list[StepResult] = []

    def on_step(result: StepResult) -> None:
        results.append(result)
        if evaluate:
            measure(
                engine,
                data.measurement,
                folder=folder,
                step=result.step,
                check_stop=lambda: None,
                on_task=lambda *_: None,
            )

    train(
        engine,
        data.batches(plan, world),
        training=plan.config.training,
        first_step=0,
        num_tasks=len(data.tasks),
        stop_requested=lambda: False,
        pulse_due=lambda: False,
        on_step=on_step,
        on_batches=notes.add if plan.config.run.record_order else None,
    )
    notes.close()
    world.barrier()
    if plan.config.run.record_order and world.is_main:
        merge_notes(folder, world_size=world.size, num_steps=plan.config.training.num_steps)
    return {
        "steps": [(result.loss, result.gradient_norm) for result in results],
        "overflows": sum(result.num_overflows for result in results),
        "peak_bytes": torch.cuda.max_memory_allocated() if plan.device == "cuda" else None,
    }


def main(cases: Path, results: Path) -> None:
    """Every case in order; a failed one is recorded and the next one begins."""
    found: dict[str, Any] = {}
    world = None
    screen = Screen(sys.stdout, speaks=False)
    for name, case in json.loads(cases.read_text(encoding="utf-8")).items():
        plan = read_plan(Path(case["plan"]))
        world = world or join_world(plan)
        AcceleratorState._reset_state(reset_partial_state=True)  # one process, one precision, accelerate believes
        try:
            with FAULTS[case["fault"]]():
                found[name] = walk(plan, world, screen, evaluate=case["evaluate"])
        except Exception:
            found[name] = {"error": traceback.format_exc()}
    if world is not None and world.is_main:
        results.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    end_rank(0)

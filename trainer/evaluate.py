"""Measure a checkpoint of a run after the run: `python -m trainer.evaluate RUN`. One process, the whole suite, the
report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.config.errors import InputError
from trainer.config.plan import read_plan
from trainer.config.run_folder import RunFolder
from trainer.console import Screen
from trainer.engine.inference import InferenceEngine
from trainer.evaluation.measure import is_complete, measure
from trainer.model import load_model, load_weights
from trainer.program import run_program, weights_folder
from trainer.run_data import read_data
from trainer.run_report import make_run_report, write_files
from trainer.seeding import seed_everything


def evaluate(run_path: Path, screen: Screen, *, step: int | None) -> str:
    """Measure all tasks at a checkpoint, the newest by default, and write the report.

    Raises:
        InputError: there is no such checkpoint, or the run was never measured before training.
    """
    folder = RunFolder(run_path.absolute())
    plan = read_plan(folder.plan)
    weights = weights_folder(folder, step)
    at = int(weights.parent.name.removeprefix("step_"))
    data = read_data(plan, screen)
    if at == 0 or not is_complete(folder, data.measurement, step=0):
        raise InputError(
            f"{run_path}: nothing to compare step {at} with: wanted the measurement before training and a later "
            f"checkpoint. Train on: retain train --resume {run_path}"
        )
    seed_everything(plan.config.run.seed, "model")
    model = load_model(plan, InferenceEngine.device(plan.device))
    load_weights(model, weights)
    engine = InferenceEngine(
        model,
        objective=plan.config.objective,
        attention=plan.config.model.attention,
        precision=plan.config.training.precision,
        device=plan.device,
    )
    screen.start_progress("measure", total=len(data.measurement.tasks))
    done: list[str] = []

    def on_task(name: str, value: float) -> None:
        done.append(name)
        screen.advance(len(done), note=f"{name} {value:.3f}")

    measure(engine, data.measurement, folder=folder, step=at, check_stop=lambda: None, on_task=on_task)
    screen.end_progress()
    write_files(folder.path, make_run_report(folder, data.measurement.tasks, plan=plan, course=data.course, step=at))
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(prog="retain evaluate", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--step", type=int)
    options = parser.parse_args(argv)
    return run_program(options.run, "evaluate", lambda screen: evaluate(options.run, screen, step=options.step))


if __name__ == "__main__":
    sys.exit(main())

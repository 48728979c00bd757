"""What every rank runs: `python -m trainer.worker plan.json [--resume]`.

Reads the plan, builds data, model and engine, measures, trains, measures again,
reports. The loop itself is in trainer/loop.py.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint import WEIGHTS, check_checkpoint, load_state, save_checkpoint
from trainer.config.plan import Plan, read_plan
from trainer.config.run_folder import RunFolder
from trainer.console import Screen, divert_library_output
from trainer.data.order_file import OrderNotes, merge_notes
from trainer.distributed import World, end_rank, host_name, join_world, place_of_rank
from trainer.engine.plain import PlainEngine
from trainer.engine.protocol import Engine
from trainer.engine.zero import ZeroEngine, partitioned_loading
from trainer.isolation import refuse_contamination
from trainer.journal import Journal
from trainer.loop import StepResult, train
from trainer.metrics import Metrics
from trainer.model import count_parameters, load_model, load_weights
from trainer.observer import Observer
from trainer.outcome import write_outcome
from trainer.run_data import RunData, read_data
from trainer.seeding import seed_everything
from trainer.signals import StopRequest


class StoppedEarly(Exception):
    """All ranks agreed to stop; a complete checkpoint is there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank from start to end; the exit code says how it went."""
    parser = argparse.ArgumentParser(prog="trainer.worker", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint")
    arguments = parser.parse_args(argv)
    folder = RunFolder(arguments.plan.parent)
    rank, _, _ = place_of_rank()
    screen, _ = divert_library_output(folder.logs / f"rank_{rank:05d}.log")
    error: BaseException | None = None
    stopped = False
    stop = StopRequest()
    stop.listen()
    try:
        logging.captureWarnings(True)
        run(
            read_plan(arguments.plan),
            folder,
            resume=arguments.resume,
            stop=stop,
            screen=Screen(screen, speaks=rank == 0),
        )
    except StoppedEarly:
        stopped = True
    except Exception as caught:  # the one place that catches everything: to record it before the rank ends
        error = caught
    return write_outcome(folder, rank=rank, host=host_name(), error=error, stopped=stopped)


def run(plan: Plan, folder: RunFolder, *, resume: bool, stop: StopRequest, screen: Screen) -> None:
    """Collective: the whole run.

    Raises:
        StoppedEarly: a signal asked for it.
        InputError: data, model or checkpoint do not fit the plan; nothing was trained.
    """
    world = join_world(plan)
    data = read_data(plan, screen)
    checkpoint = newest_checkpoint(folder) if resume else None
    step = check_checkpoint(checkpoint, plan=plan) if checkpoint else 0
    engine = build_engine(plan, world, checkpoint, screen)
    if plan.config.data.packing:
        encoder = data.measurement.encoder
        refuse_contamination(engine, plan, vocabulary=len(encoder.tokenizer), pad_token_id=encoder.pad_token_id)
    metrics = Metrics(folder, first_step=step) if world.is_main else None
    journal = Journal(plan, screen, metrics, first_step=step, data=data)

    def check_stop() -> None:
        if world.any(stop.requested):
            raise StoppedEarly

    observer = Observer(plan, folder, engine, data, journal=journal, check_stop=check_stop)
    try:
        if step == 0:
            measure_baseline(plan, folder, engine, observer, journal=journal)
        step = train_all(
            plan, folder, world, engine, data, first_step=step, stop=stop, journal=journal, observer=observer
        )
        observer.final(step)
    finally:
        journal.close()


def measure_baseline(plan: Plan, folder: RunFolder, engine: Engine, observer: Observer, *, journal: Journal) -> None:
    """Collective: measure the model as it was before training; stopped meanwhile, it leaves a checkpoint of step 0."""
    try:
        observer.baseline()
    except StoppedEarly:  # adapters that are switched off count as frozen: outside of the block that does it
        journal.saved(save_checkpoint(engine, plan=plan, folder=folder, step=0))
        raise


def train_all(
    plan: Plan,
    folder: RunFolder,
    world: World,
    engine: Engine,
    data: RunData,
    *,
    first_step: int,
    stop: StopRequest,
    journal: Journal,
    observer: Observer,
) -> int:
    """Collective: the remaining steps, with checkpoints; returns the completed steps."""
    training, every = plan.config.training, plan.config.checkpoint.every_steps

    def on_step(result: StepResult) -> None:
        journal.step(result)
        last = result.step == training.num_steps
        try:
            if not result.stop:
                observer.after_step(result)
        except StoppedEarly:
            journal.saved(save_checkpoint(engine, plan=plan, folder=folder, step=result.step))
            raise
        if last or result.stop or (every is not None and result.step % every == 0):
            journal.saved(save_checkpoint(engine, plan=plan, folder=folder, step=result.step))

    notes = None
    if plan.config.run.record_order:
        notes = OrderNotes(folder, rank=world.rank, first_step=first_step, order=data.order, tasks=data.tasks)
    observer.begin_training(first_step)
    journal.begin_training()
    result = train(
        engine,
        data.batches(plan, world),
        training=training,
        first_step=first_step,
        num_tasks=len(data.tasks),
        stop_requested=lambda: stop.requested,
        pulse_due=observer.pulse_due,
        on_step=on_step,
        on_batches=notes.add if notes is not None else None,
    )
    journal.end_training()
    num_steps = result.step if result is not None else first_step
    if notes is not None:
        notes.close()
        world.barrier()
        if world.is_main:
            merge_notes(folder, world_size=world.size, num_steps=num_steps)
    if result is not None and result.stop and result.step < training.num_steps:
        raise StoppedEarly
    return training.num_steps


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """The newest complete checkpoint, or None where the run never wrote one."""
    steps = folder.complete_checkpoints()
    return folder.checkpoint(steps[-1]) if steps else None


def build_engine(plan: Plan, world: World, checkpoint: Path | None, screen: Screen) -> Engine:
    """Collective: the model in its engine, at its first or at its checkpointed state."""
    seed_everything(plan.config.run.seed, "model")  # the same new weights on every rank
    with partitioned_loading(plan):
        model: Any = load_model(plan, world.device)
    whole = plan.zero_stage < 3 and plan.config.model.quantisation != "int4"  # two 4-bit weights share an element
    trainable, total = count_parameters(model) if whole else plan_parameters(plan)
    screen.say(f"model: {total:,} parameters, {trainable:,} trainable ({trainable / total:.2%})")
    if checkpoint is not None and plan.zero_stage == 0:
        load_weights(model, checkpoint / WEIGHTS)
    if plan.config.model.quantisation == "none":  # a quantised base is where it belongs, and cannot be moved
        model.to(world.device)
    engine: Engine
    if plan.zero_stage:
        engine = ZeroEngine(model, plan=plan, world=world)
    else:
        engine = PlainEngine(model, plan=plan, world=world)
    seed_everything(plan.config.run.seed, "dropout", world.rank)
    if checkpoint is not None:
        load_state(engine, checkpoint)
        screen.say(f"resumed from {checkpoint.name}")
    return engine


def plan_parameters(plan: Plan) -> tuple[int, int]:
    """(trainable, total) parameters as the plan counted them: partitioned weights cannot be counted."""
    return plan.memory.num_trainable_parameters, plan.memory.num_parameters


if __name__ == "__main__":
    end_rank(main())

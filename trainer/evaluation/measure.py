"""A whole measurement: every evaluation task at one step, records written, no trace left on training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from trainer.config.run_folder import RunFolder
from trainer.data.tokenize import PromptEncoder
from trainer.engine.protocol import Engine
from trainer.evaluation.examples import EvaluationData
from trainer.evaluation.records import write_records
from trainer.evaluation.score import score_task
from trainer.evaluation.suite import EvaluationTask
from trainer.seeding import random_state, restore_random_state


@dataclass(frozen=True, slots=True)
class Measurement:
    """What to measure, fixed for the whole run."""

    tasks: Sequence[EvaluationTask]
    data: Sequence[EvaluationData]
    encoder: PromptEncoder
    examples_per_batch: int


def measure(
    engine: Engine,
    measurement: Measurement,
    *,
    folder: RunFolder,
    step: int,
    check_stop: Callable[[], None],
    on_task: Callable[[str, float], None],
) -> None:
    """Collective: measure all tasks after `step` optimizer steps; the main rank writes the records.

    Args:
        on_task: told the name of each finished task and its number (mean score, or nats per token).
    """
    with untouched(engine):
        for task, data in zip(measurement.tasks, measurement.data, strict=True):
            records = score_task(
                engine,
                task,
                data.examples,
                encoder=measurement.encoder,
                examples_per_batch=measurement.examples_per_batch,
                check_stop=check_stop,
            )
            if engine.world.is_main:
                write_records(folder.records(step, task.name), records)
            on_task(task.name, sum(r.value for r in records) / sum(r.weight for r in records))


@contextmanager
def untouched(engine: Engine) -> Iterator[None]:
    """Evaluation mode inside; afterwards random state and the mode of every module are as before."""
    state = random_state()
    modes = [(module, module.training) for module in engine.model.modules()]
    engine.model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        restore_random_state(state)

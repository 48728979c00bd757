"""A whole measurement: evaluation tasks at one step, records written, no trace left on training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from trainer.config.run_folder import RunFolder
from trainer.data.tokenize import PromptEncoder
from trainer.engine.protocol import Scorer
from trainer.evaluation.drift import KeptTokens, kept_examples, read_kept, write_kept
from trainer.evaluation.examples import EvaluationData
from trainer.evaluation.records import ExampleRecord, write_records
from trainer.evaluation.score import DriftRequest, score_task
from trainer.evaluation.suite import EvaluationTask
from trainer.evaluation.suite_schema import Tier
from trainer.seeding import random_state, restore_random_state

ORDER_OF_TIERS: tuple[Tier, ...] = ("pulse", "stage", "full")

OnTask = Callable[[str, float], None]
"""Told the name of each finished task and its number: mean score, or nats per token."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What to measure, fixed for the whole run."""

    tasks: Sequence[EvaluationTask]
    data: Sequence[EvaluationData]
    encoder: PromptEncoder
    examples_per_batch: int
    drift_tokens: int = 0
    """Tokens of each text on which the base's distribution is kept."""

    def of_tier(self, tier: Tier, *, max_examples: int | None = None) -> "Measurement":
        """The tasks of this tier and of those below it, on the first of their examples."""
        allowed = ORDER_OF_TIERS[: ORDER_OF_TIERS.index(tier) + 1]
        chosen = [
            (task, replace(data, examples=data.examples[:max_examples]))
            for task, data in zip(self.tasks, self.data, strict=True)
            if task.spec.tier_in_force in allowed
        ]
        return replace(self, tasks=[task for task, _ in chosen], data=[data for _, data in chosen])

    @property
    def num_sequences(self) -> int:
        """Texts that the model reads in one measurement."""
        return sum(max(1, len(one.candidate_ids)) for data in self.data for one in data.examples)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measurement found, by task; the same on every rank."""

    records: dict[str, list[ExampleRecord]]
    kept: dict[str, dict[str, KeptTokens]]


def run_tasks(
    engine: Scorer,
    measurement: Measurement,
    *,
    check_stop: Callable[[], None],
    on_task: OnTask | None = None,
    keep: bool = False,
    base: dict[str, dict[str, KeptTokens]] | None = None,
) -> Measured:
    """Collective: measure all tasks; nothing is written, and no trace is left on the model.

    Args:
        keep: keep the model's most likely tokens, to compare later ones with.
        base: what was kept of the base, by task and example.
    """
    found = Measured({}, {})
    with untouched(engine):
        for task, data in zip(measurement.tasks, measurement.data, strict=True):
            drift = DriftRequest()
            if task.spec.kind == "text" and not task.labels:
                wanted = kept_examples(data.examples, max_tokens=measurement.drift_tokens) if keep else frozenset()
                drift = DriftRequest(wanted, (base or {}).get(task.name, {}))
            scored = score_task(
                engine,
                task,
                data.examples,
                encoder=measurement.encoder,
                examples_per_batch=measurement.examples_per_batch,
                check_stop=check_stop,
                drift=drift,
            )
            found.records[task.name] = scored.records
            if scored.kept:
                found.kept[task.name] = scored.kept
            if on_task is not None:
                on_task(task.name, mean_of(scored.records))
    return found


def measure(
    engine: Scorer,
    measurement: Measurement,
    *,
    folder: RunFolder,
    step: int,
    check_stop: Callable[[], None],
    on_task: OnTask,
) -> Measured:
    """Collective: measure all tasks after `step` > 0 optimizer steps; the main rank writes the records."""
    base = read_all_kept(folder, measurement)
    found = run_tasks(engine, measurement, check_stop=check_stop, on_task=on_task, base=base)
    if engine.world.is_main:
        for name, records in found.records.items():
            write_records(folder.records(step, name), records)
    return found


def measure_base(
    engine: Scorer,
    measurement: Measurement,
    *,
    folder: RunFolder,
    null_flips: bool,
    check_stop: Callable[[], None],
    on_task: OnTask,
) -> None:
    """Collective: measure the model as it was before training; the main rank writes the records of step 0, what is
    kept of it, and a second measurement in other batches."""
    found = run_tasks(engine, measurement, check_stop=check_stop, on_task=on_task, keep=measurement.drift_tokens > 0)
    null: dict[str, list[ExampleRecord]] = {}
    if null_flips:
        null = run_tasks(engine, _in_other_batches(measurement), check_stop=check_stop).records
    if engine.world.is_main:
        for name, kept in found.kept.items():
            write_kept(folder.kept_tokens(name), kept)
        for name, records in null.items():
            write_records(folder.null_records(name), records)
        for name, records in found.records.items():
            write_records(folder.records(0, name), records)


def read_all_kept(folder: RunFolder, measurement: Measurement) -> dict[str, dict[str, KeptTokens]]:
    """What was kept of the base, by task and example."""
    return {task.name: read_kept(folder.kept_tokens(task.name)) for task in measurement.tasks}


def is_complete(folder: RunFolder, measurement: Measurement, *, step: int) -> bool:
    """Whether every task has been measured at this step."""
    return all(folder.records(step, task.name).is_file() for task in measurement.tasks)


def mean_of(records: Sequence[ExampleRecord]) -> float:
    """Mean score, or nats per token."""
    return sum(record.value for record in records) / sum(record.weight for record in records)


def _in_other_batches(measurement: Measurement) -> Measurement:
    """The scores again, in batches of another size: a harmless change, so what flips is noise."""
    size = measurement.examples_per_batch
    chosen = [
        (task, data) for task, data in zip(measurement.tasks, measurement.data, strict=True) if task.spec.kind != "text"
    ]
    return replace(
        measurement,
        tasks=[task for task, _ in chosen],
        data=[data for _, data in chosen],
        examples_per_batch=size // 2 if size > 1 else 2,
    )


@contextmanager
def untouched(engine: Scorer) -> Iterator[None]:
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

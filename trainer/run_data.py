"""Everything that a run reads from files: training examples in their order, held-out examples, and no overlap of both.

Made once and kept in the cache; the same on every rank.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from trainer.config.data_schema import DataSection
from trainer.config.errors import DataError
from trainer.config.plan import Plan
from trainer.console import Screen
from trainer.data.artifact import Say, made_once
from trainer.data.collate import StepBatches
from trainer.data.course import Course
from trainer.data.fingerprint import Fingerprints, key_of
from trainer.data.leakage import Overlap, strongest, summary
from trainer.data.order import Order, StepSize, lay_out, open_order
from trainer.data.shares import base_weights
from trainer.data.stream import StreamedTask, TrainingTask
from trainer.data.task_tokens import prepare_task, recipe_of
from trainer.data.token_store import TaskData
from trainer.data.tokenize import PromptEncoder, load_tokenizer
from trainer.distributed import World
from trainer.evaluation.measure import Measurement
from trainer.evaluation.prepare import Prepared, examples_key, prepare_capability
from trainer.evaluation.suite import EvaluationTask, evaluation_tasks


@dataclass(frozen=True, slots=True)
class RunData:
    """Everything read from files."""

    tasks: list[TrainingTask]
    course: Course
    order: Order
    measurement: Measurement

    def batches(self, plan: Plan, world: World) -> StepBatches:
        """This rank's micro-batches, by step."""
        data = plan.config.data
        return StepBatches(
            tasks=self.tasks,
            order=self.order,
            rows_per_microbatch=plan.examples_per_microbatch,
            rank=world.rank,
            world_size=world.size,
            pad_token_id=self.measurement.encoder.pad_token_id,
            row_tokens=data.sequence_length_tokens if data.packing else None,
            width=data.sequence_length_tokens if data.padding == "sequence_length" else None,
        )


def read_data(plan: Plan, screen: Screen, *, processes: int = 1, tell: Say | None = None) -> RunData:
    """Open training and held-out examples and their order; what is not in the cache yet is made now.

    Args:
        processes: that may work on what is to be made.
        tell: told about progress; without it the screen is.

    Raises:
        InputError: a source, an example, a column or a length is wrong, or a held-out example is trained on.
    """
    reader = _Reader(plan, screen, processes, tell or screen.say)
    evaluations = evaluation_tasks(plan.config, variables={"RETAIN_CACHE": plan.cache_folder})
    prepared = reader.evaluations(evaluations)
    heldout = [data for one in prepared.values() for data in one.data]
    tasks = reader.tasks([one.folder for one in prepared.values()])
    reader.report_leakage()
    course, order = reader.order(tasks)
    return RunData(
        tasks,
        course,
        order,
        Measurement(
            evaluations,
            heldout,
            reader.encoder,
            plan.evaluation_examples_per_batch,
            plan.config.evaluation.drift_tokens_per_task,
        ),
    )


class _Reader:
    """The steps of `read_data`, and what they share."""

    def __init__(self, plan: Plan, screen: Screen, processes: int, tell: Say) -> None:
        self._plan, self._screen, self._processes, self._tell = plan, screen, processes, tell
        self._cache = Path(plan.cache_folder) / "data"
        self._fingerprints = Fingerprints(self._cache / "files")
        self._tokenizer_key = key_of("tokenizer", self._fingerprints.tokenizer(Path(plan.model_folder)))
        self._overlaps: list[Overlap] = []
        self._num_heldout: dict[str, int] = {}
        self.encoder = PromptEncoder(load_tokenizer(plan.model_folder), labels=plan.config.labels)
        if plan.config.data.chat_template:
            self.encoder.refuse_missing_template()

    def evaluations(self, evaluations: Sequence[EvaluationTask]) -> dict[str, Prepared]:
        """Held-out examples by name, in the order of the evaluation tasks."""
        config, prepared = self._plan.config, {}
        for examples, group in groupby(evaluations, key=lambda task: task.examples):
            tasks = list(group)
            one = prepare_capability(
                self._cache,
                tasks,
                source_key=examples_key(self._fingerprints, tasks[0].spec, self._tokenizer_key),
                encoder=self.encoder,
                context_tokens=config.data.sequence_length_tokens,
                max_examples=config.evaluation.max_examples_per_task,
                on_bad_example=config.data.on_bad_example,
                processes=self._processes,
                say=self._tell,
                timeout_seconds=config.data.preparation_timeout_seconds,
            )
            self._tell_heldout(tasks, one)
            self._num_heldout[examples] = max(len(data.examples) for data in one.data)
            prepared[examples] = one
        return prepared

    def tasks(self, heldout_folders: Sequence[Path]) -> list[TrainingTask]:
        """Token ids of the training examples."""
        data = self._plan.config.data
        tasks: list[TrainingTask] = []
        looked_for = heldout_folders if data.leakage != "off" else ()
        for name, section in data.tasks.items():
            if section.streaming:
                tasks.append(self._streamed(name, looked_for))
                self._screen.say(f"task {name}: streamed: read while training, nothing of it is kept on disk")
                continue
            task, overlaps = prepare_task(
                self._cache,
                name,
                data,
                source_key=key_of(self._fingerprints.source(section.train), self._tokenizer_key),
                model_folder=self._plan.model_folder,
                labels=self._plan.config.labels,
                heldout_folders=looked_for,
                processes=self._processes,
                say=self._tell,
            )
            self._overlaps += overlaps
            self._tell_task(task)
            tasks.append(task)
        return tasks

    def _streamed(self, name: str, heldout_folders: Sequence[Path]) -> StreamedTask:
        config = self._plan.config
        wording = [
            config.data.model_dump(mode="json"),
            config.labels,
            self._tokenizer_key,
        ]  # and nobody knows its content
        recipe = recipe_of(
            name,
            config.data,
            key=key_of("streamed", name, wording, [folder.name for folder in heldout_folders]),
            model_folder=self._plan.model_folder,
            labels=config.labels,
            heldout_folders=heldout_folders,
        )
        return StreamedTask(
            recipe,
            window_examples=config.data.stream_window_examples,
            on_bad_example=config.data.on_bad_example,
            on_overlaps=self.report_overlaps,
            seed=config.run.seed,
        )

    def report_leakage(self) -> None:
        """Stop, or tell, where a held-out example is trained on."""
        self.report_overlaps(strongest(self._overlaps))

    def report_overlaps(self, found: list[Overlap]) -> None:
        """Stop, or tell of these examples."""
        if not found:
            return
        lines = summary(found, self._num_heldout)
        if self._plan.config.data.leakage == "error":
            advice = "Remove them from the training data; or, knowing that scores are too good, set data.leakage=warn."
            raise DataError("\n".join([*lines, f"data.leakage: {advice}"]))
        for line in lines:
            self._screen.say(f"WARNING: {line}")

    def order(self, tasks: Sequence[TrainingTask]) -> tuple[Course, Order]:
        """The order of the whole run, and the shares that it keeps."""
        config = self._plan.config
        data, training = config.data, config.training
        course = course_of(data, tasks, num_steps=training.num_steps)
        size = StepSize(
            num_steps=training.num_steps,
            examples=training.examples_per_step,
            tokens=None if data.packing else training.tokens_per_step,
            rows=config.rows_per_step if data.packing and training.tokens_per_step else None,
            row_tokens=data.sequence_length_tokens,
        )
        shares = hashlib.sha256(course.shares_SK.tobytes()).hexdigest()
        key = key_of("order", [task.key for task in tasks], shares, data.mixture.unit, repr(size), config.run.seed)
        folder = self._cache / "orders" / key
        wait = data.preparation_timeout_seconds
        with made_once(folder, what="order of the run", say=self._tell, timeout_seconds=wait) as builder:
            if builder is not None:
                lengths = [task.lengths for task in tasks]
                made = lay_out(course, mixture=data.mixture, lengths=lengths, size=size, seed=config.run.seed)
                made.write(builder.folder)
        return course, open_order(folder)

    def _tell_heldout(self, tasks: Sequence[EvaluationTask], prepared: Prepared) -> None:
        context = self._plan.config.data.sequence_length_tokens
        for task, data in zip(tasks, prepared.data, strict=True):
            if prepared.num_bad:
                self._screen.say(f"{task.name}: {prepared.num_bad} bad examples left out")
            if (count := data.num_dropped_overlength) > 0:
                self._screen.say(f"{task.name}: {count} examples do not fit {context} tokens: left out")

    def _tell_task(self, task: TaskData) -> None:
        summary = task.summary
        told = f", {summary.num_overlength} over-long dropped" if summary.num_overlength else ""
        told += f", {summary.num_truncated} cut to length" if summary.num_truncated else ""
        told += f", {summary.num_bad} bad ones skipped" if summary.num_bad else ""
        self._screen.say(f"task {task.name}: {task.num_examples:,} training examples{told}")


def course_of(data: DataSection, tasks: Sequence[TrainingTask], *, num_steps: int) -> Course:
    """The shares of the tasks over a run, from their weights and sizes."""
    base = base_weights(
        data.mixture,
        sizes=[task.num_examples or 0 for task in tasks],
        tokens=[task.summary.num_tokens for task in tasks],
    )
    return Course(
        names=list(data.tasks),
        base=base.tolist(),
        weights={name: section.weight for name, section in data.tasks.items()},
        stages=data.stages,
        replay=data.replay,
        num_steps=num_steps,
    )

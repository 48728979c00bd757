"""The measurements of a run: before training, in pulses, after each stage, and at the end. Methods are collective."""

import time
from collections.abc import Callable

from trainer.config.errors import DataError
from trainer.config.plan import Plan
from trainer.config.run_folder import RunFolder, read_json_object, write_json
from trainer.engine.protocol import Engine
from trainer.evaluation.baseline import BaselineCache, baseline_of
from trainer.evaluation.capability_row import CapabilityRow
from trainer.evaluation.figures import figures_of
from trainer.evaluation.measure import is_complete, mean_of, measure, measure_base, read_all_kept, run_tasks
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.rows import compare_all, part_of
from trainer.journal import Journal
from trainer.loop import StepResult
from trainer.model import base_weights
from trainer.pulse import PulseBudget
from trainer.report_html import read_history
from trainer.run_data import RunData
from trainer.run_report import make_run_report, no_matrix_because, read_step, stage_ends, write_files


class Observer:
    """Knows what is measured when, and leaves no trace on the training."""

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        engine: Engine,
        data: RunData,
        *,
        journal: Journal,
        check_stop: Callable[[], None],
    ) -> None:
        """`check_stop` raises on every rank where one was asked to stop."""
        self._plan, self._folder, self._engine, self._journal = plan, folder, engine, journal
        self._course, self._check_stop = data.course, check_stop
        self._all = data.measurement
        self._evaluation = plan.config.evaluation
        self._stage = self._all.of_tier("stage")
        section = self._evaluation.pulse if self._evaluation.when == "in_run" else None
        self._pulse = self._all.of_tier("pulse", max_examples=section.examples_per_task if section else 2)
        self._section = section if self._pulse.tasks else None
        num_steps = plan.config.training.num_steps
        inner = stage_ends(data.course, num_steps=num_steps)[:-1]
        self._stage_ends = inner if self._evaluation.when == "in_run" else []
        if (reason := no_matrix_because(plan.config, self._all.tasks)) is not None:
            journal.say(f"WARNING: {reason}.")
        self._budget = PulseBudget(None, expected_seconds=0.0)
        self._base: dict[str, list[ExampleRecord]] = {}

    def baseline(self) -> None:
        """The model as it was before training: from the cache, or measured now and kept there."""
        world, journal = self._engine.world, self._journal
        cache = baseline_of(self._plan, self._all) if world.is_main else None
        found = cache is not None and self._evaluation.baseline == "reuse" and self._restore(cache)
        if not world.any(found):
            journal.begin_measurement("before training", self._all.tasks)
            begun = time.perf_counter()
            with base_weights(self._engine.model):
                measure_base(
                    self._engine,
                    self._all,
                    folder=self._folder,
                    null_flips=self._evaluation.null_flips,
                    check_stop=self._check_stop,
                    on_task=journal.measured,
                )
            if cache is not None:
                write_json(self._folder.baseline_notes, {"seconds": time.perf_counter() - begun})
                cache.store(self._folder)
        elif cache is not None:
            journal.say(f"before training: measured by an earlier run of this model and suite ({cache.path.name})")
            for name, records in read_step(self._folder, self._all.tasks, step=0).items():
                journal.measured(name, mean_of(records))
        world.barrier()

    def _restore(self, cache: BaselineCache) -> bool:
        try:
            return cache.restore(self._folder)
        except DataError as error:
            self._journal.say(f"WARNING: {error}. It is measured again.")
            return False

    def begin_training(self, first_step: int) -> None:
        """Steps follow. A stage that was over when the run was stopped is measured now, if it was not then."""
        if first_step in self._stage_ends and not is_complete(self._folder, self._stage, step=first_step):
            self._measure_stage(first_step)
        if self._section is not None and self._engine.world.is_main:
            notes = read_json_object(self._folder.baseline_notes) or {}
            share = self._pulse.num_sequences / self._all.num_sequences
            self._budget = PulseBudget(self._section, expected_seconds=notes.get("seconds", 0.0) * share)
            self._base = read_step(self._folder, self._pulse.tasks, step=0)

    def pulse_due(self) -> bool:
        """Not collective: asked on the main rank."""
        return self._budget.due()

    def after_step(self, result: StepResult) -> None:
        """What this step asks for: a stage that is over, or a pulse."""
        self._budget.step()
        if result.step in self._stage_ends:
            self._measure_stage(result.step)
        elif result.pulse and result.step < self._plan.config.training.num_steps:
            self._measure_pulse(result.step)

    def _measure_stage(self, step: int) -> None:
        self._journal.begin_measurement(f"after the stage that ends at step {step}", self._stage.tasks)
        found = measure(
            self._engine,
            self._stage,
            folder=self._folder,
            step=step,
            check_stop=self._check_stop,
            on_task=self._journal.measured,
        )
        if self._engine.world.is_main:
            before = read_step(self._folder, self._stage.tasks, step=0)
            rows = compare_all(
                {task.name: task.descriptions for task in self._stage.tasks},
                before=before,
                after=found.records,
                null={},
            )
            self._journal.compared(step, "stage", rows)
        self._journal.begin_training()
        self._engine.world.barrier()

    def _measure_pulse(self, step: int) -> None:
        begun = time.perf_counter()
        base = read_all_kept(self._folder, self._pulse)
        found = run_tasks(self._engine, self._pulse, check_stop=self._check_stop, base=base)
        if self._engine.world.is_main:
            self._journal.compared(step, "pulse", self._pulse_rows(found.records))
        self._engine.world.barrier()
        self._budget.took(time.perf_counter() - begun)

    def _pulse_rows(self, records: dict[str, list[ExampleRecord]]) -> list[CapabilityRow]:
        return compare_all(
            {task.name: task.descriptions for task in self._pulse.tasks},
            before={name: part_of(self._base[name], several) for name, several in records.items()},
            after=records,
            null={},
        )

    def final(self, step: int) -> None:
        """Everything once more, and the report."""
        journal = self._journal
        if self._section is not None and step:
            journal.say(
                f"pulses: {self._budget.num_pulses}, {self._budget.share_spent:.1%} of the training's wall time"
            )
        if self._evaluation.when == "later":
            journal.say(
                f"evaluation.when is later: measure the trained model with: retain evaluate {self._folder.path}"
            )
            return
        journal.begin_measurement("after training", self._all.tasks)
        measure(
            self._engine,
            self._all,
            folder=self._folder,
            step=step,
            check_stop=self._check_stop,
            on_task=journal.measured,
        )
        if self._engine.world.is_main:
            report = make_run_report(self._folder, self._all.tasks, plan=self._plan, course=self._course, step=step)
            journal.reported(step, report)
            write_files(self._folder.path, report)
            journal.drawn(step, figures_of(report, read_history(self._folder.metrics)))
        self._engine.world.barrier()

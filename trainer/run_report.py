"""The report of a run: its records before and after training, and after each stage, put together and written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from trainer.config.course_schema import stages_in_force
from trainer.config.errors import InputError
from trainer.config.plan import Plan
from trainer.config.run_folder import RunFolder, write_text_atomically
from trainer.config.schema import RunConfig
from trainer.data.course import Course
from trainer.evaluation.capability_row import CapabilityRow
from trainer.evaluation.continual import BASE, ContinualMatrix
from trainer.evaluation.records import ExampleRecord, read_records
from trainer.evaluation.report import ForgettingReport, build_report, read_report, write_report
from trainer.evaluation.report_text import render_markdown
from trainer.evaluation.rows import compare_all
from trainer.evaluation.stages import Stages, read_off
from trainer.evaluation.suite import EvaluationTask
from trainer.provenance import provenance
from trainer.report_html import write_html


def stage_ends(course: Course, *, num_steps: int) -> list[int]:
    """Steps after which a stage is over, the last one included."""
    return [*course.stage_starts[1:], num_steps]


def make_run_report(
    folder: RunFolder, tasks: Sequence[EvaluationTask], *, plan: Plan, course: Course, step: int
) -> ForgettingReport:
    """Join the records of step 0 and of `step`; nothing is written.

    Raises:
        InputError: records before and after are not of the same examples.
    """
    before, after = (read_step(folder, tasks, step=at) for at in (0, step))
    null = {
        task.name: read_records(folder.null_records(task.name))
        for task in tasks
        if folder.null_records(task.name).is_file()
    }
    rows = compare_all({task.name: task.descriptions for task in tasks}, before=before, after=after, null=null)
    stages = _stages(folder, tasks, rows, plan=plan, course=course, step=step)
    return build_report(rows, provenance=provenance(plan, step=step), stages=stages)


def write_files(folder: Path, report: ForgettingReport) -> None:
    """report.json, report.md and report.html, each atomically."""
    write_report(folder / "report.json", report)
    write_text_atomically(folder / "report.md", render_markdown(report))
    write_html(folder)


def read_step(folder: RunFolder, tasks: Sequence[EvaluationTask], *, step: int) -> dict[str, list[ExampleRecord]]:
    """The records of one measured step, by task."""
    return {task.name: read_records(folder.records(step, task.name)) for task in tasks}


def first_stages(config: RunConfig) -> dict[str, int]:
    """The first stage, from 1, that learns each task; tasks that are only replayed are not in it."""
    weights = {name: task.weight for name, task in config.data.tasks.items()}
    found: dict[str, int] = {}
    for number, stage in enumerate(
        stages_in_force(weights, stages=config.data.stages, replay=config.data.replay), start=1
    ):
        for name in stage.weights:
            found.setdefault(name, number)
    return found


def no_matrix_because(config: RunConfig, tasks: Sequence[EvaluationTask]) -> str | None:
    """Why a run with stages has no matrix of scores; None where it has one, or no stages."""
    if not config.data.stages:
        return None
    if config.evaluation.when == "later":
        return "no matrix of scores over the stages: evaluation.when is later, and stages are measured in the run"
    scored = {task.trained and task.capability for task in tasks if task.spec.kind != "text"}
    learnt = first_stages(config)
    bare = [
        number
        for number in range(1, len(config.data.stages) + 1)
        if not any(stage == number and name in scored for name, stage in learnt.items())
    ]
    if not bare:
        return None
    return (
        f"no matrix of scores over the stages: stage {bare[0]} first learns no task with a `score`. "
        "Give one of its tasks a `score`"
    )


def _stages(
    folder: RunFolder,
    tasks: Sequence[EvaluationTask],
    rows: Sequence[CapabilityRow],
    *,
    plan: Plan,
    course: Course,
    step: int,
) -> Stages | None:
    if not plan.config.data.stages or no_matrix_because(plan.config, tasks) is not None:
        return None
    learnt = first_stages(plan.config)
    by_name = {row.name: row for row in rows}
    scored = [
        task
        for task in tasks
        if by_name[task.name].unit == "share"
        and task.spec.tier_in_force != "full"
        and (task.group == "base" or task.capability in learnt)
    ]
    reached = [end for end in stage_ends(course, num_steps=plan.config.training.num_steps) if end <= step]
    if not all(folder.records(end, task.name).is_file() for end in reached for task in scored):
        return None  # evaluation.when: later
    scores = [_means(read_step(folder, scored, step=at)) for at in (0, *reached)]
    matrix = ContinualMatrix(
        stages=(BASE, *(f"stage {number}" for number in range(1, len(reached) + 1))),
        tasks=tuple(task.name for task in scored),
        learnt_in=tuple(learnt[task.capability] if task.group == "trained" else 0 for task in scored),
        scores_RT=tuple(tuple(row[task.name] for task in scored) for row in scores),
    )
    reference = None
    if plan.config.evaluation.reference_run is not None:
        reference = _reference(Path(plan.config.evaluation.reference_run), matrix)
    return read_off(matrix, steps=(0, *reached), reference=reference)


def _reference(run: Path, matrix: ContinualMatrix) -> list[float]:
    """Score of a jointly trained run on each stage's tasks, at its end.

    Raises:
        InputError: it was not measured on them.
    """
    report = {row.name: row.after for row in read_report(run).rows}
    missing = [name for name, stage in zip(matrix.tasks, matrix.learnt_in, strict=True) if stage and name not in report]
    if missing:
        raise InputError(
            f"evaluation.reference_run: {run} was not measured on {', '.join(missing)}. Give a run with the same tasks."
        )
    return [
        fmean(report[name] for name, learnt in zip(matrix.tasks, matrix.learnt_in, strict=True) if learnt == stage)
        for stage in range(1, matrix.num_stages + 1)
    ]


def _means(records: Mapping[str, Sequence[ExampleRecord]]) -> dict[str, float]:
    return {name: sum(one.value for one in several) / len(several) for name, several in records.items()}

"""Two sides of a comparison, whatever they are: runs, models, files of records, sample files of lm-eval.

Everything becomes per-example records; models are measured first, by another process.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.commands import module_argv
from launch.local import run_module
from launch.machine import Machine
from launch.memory import LARGEST_EVALUATION_BATCH
from launch.plan import find_model, rank_environment
from trainer.config.errors import ConfigError, InputError
from trainer.config.plan import read_plan
from trainer.config.run_folder import RunFolder, write_json
from trainer.evaluation.capability_row import Kind, TaskDescription
from trainer.evaluation.lm_eval_files import read_lm_eval
from trainer.evaluation.records import ExampleRecord, read_records
from trainer.evaluation.report import JSON, ForgettingReport, build_report
from trainer.evaluation.rows import compare_all
from trainer.evaluation.suite import EvaluationTask, evaluation_tasks, suite_tasks
from trainer.evaluation.suite_schema import MARGINS

AT_STEP = re.compile(r"^(?P<path>.+)@(?P<step>\d+)$")
STEP_FOLDER = re.compile(r"^step_(\d{6,})$")
MEASURES: dict[str, tuple[Kind, str]] = {
    "token_nll": ("text", "loss"),
    "choice_accuracy": ("choice", "accuracy"),
    "choice_accuracy_per_byte": ("choice", "accuracy"),
    "head_label": ("classify", "accuracy"),
    "exact_match": ("generate", "exact match"),
    "f1": ("generate", "word F1"),
    "numeric": ("generate", "numeric match"),
    "chrf": ("generate", "chrF"),
}
"""What a scorer's records are measures of, where no suite says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """How a model that is given as a folder is measured."""

    suite: Path | None
    max_examples: int
    sequence_length_tokens: int
    precision: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison."""

    name: str
    """What the user gave."""
    records: Mapping[str, Sequence[ExampleRecord]]
    """By task."""
    descriptions: Mapping[str, Sequence[TaskDescription]] = field(default_factory=dict)
    """By task; empty where only the records are known."""
    null: Mapping[str, Sequence[ExampleRecord]] = field(default_factory=dict)


def read_side(
    given: str, *, machine: Machine, settings: ModelSettings, metric: str | None, filter_name: str | None
) -> Side:
    """One side: RUN, RUN@STEP, a folder or file of records, lm-eval sample files, or a model to be measured.

    Raises:
        InputError: it is none of these, or was not measured.
    """
    match = AT_STEP.match(given)
    path = Path(match["path"] if match else given)
    if RunFolder(path).plan.is_file():
        return _run_side(given, RunFolder(path), machine, step=int(match["step"]) if match else None)
    if path.is_file() or (path.is_dir() and any(path.rglob("*.jsonl"))):
        return _file_side(given, path, metric=metric, filter_name=filter_name)
    try:
        model = find_model(given, machine=machine)
    except ConfigError:
        model = path
    if not (model / "config.json").is_file():
        raise InputError(
            f"{given}: found {'a folder without any of these' if path.is_dir() else 'nothing'}, wanted a run, a model, "
            "a file of records or lm-eval's samples_*.jsonl."
        )
    return _model_side(given, model, machine, settings)


def compare_sides(
    before: Side, after: Side, *, margin: float | None, notify: Callable[[str], None]
) -> ForgettingReport:
    """Rows and verdicts for every task that both sides have.

    Raises:
        InputError: they have no task in common, or what they have cannot be joined.
    """
    common = [name for name in before.records if name in after.records]
    for side, other in ((before, after), (after, before)):
        alone = [name for name in side.records if name not in other.records]
        if alone:
            notify(f"only in {side.name}, not compared: {', '.join(alone)}")
    if not common:
        raise InputError(
            f"nothing to compare: {before.name} has {', '.join(before.records)}; {after.name} has "
            f"{', '.join(after.records)}. Measure both with the same suite."
        )
    known = {**after.descriptions, **before.descriptions}
    descriptions = {
        name: [
            replace(one, group="base", margin=margin or one.margin)
            for one in known.get(name) or [_described(name, before.records[name])]
        ]
        for name in common
    }
    rows = compare_all(descriptions, before=before.records, after=after.records, null=before.null)
    provenance: dict[str, JSON] = {"before": before.name, "after": after.name}
    return build_report(rows, provenance=provenance)


def _described(name: str, records: Sequence[ExampleRecord]) -> TaskDescription:
    """What records measure, by their scorer."""
    scorer = records[0].scorer
    if scorer.startswith("lm_eval:"):
        kind: Kind = "choice" if records[0].candidate_nats else "generate"
        measure = scorer.split(":")[2].split("@")[0].split(",")[0]
    elif (short := scorer.split("@")[0]) in MEASURES:
        kind, measure = MEASURES[short]
    else:
        raise InputError(
            f"task {name}: scorer {scorer!r} is of an unknown kind. Measure it with `retain compare --suite`."
        )
    unit = "nats/token" if kind == "text" else "share"
    return TaskDescription(
        name=name,
        capability=name,
        group="base",
        kind=kind,
        measure=measure,
        unit=unit,
        higher_is_better=kind != "text",
        margin=MARGINS[kind],
    )


def _by_task(tasks: Sequence[EvaluationTask]) -> dict[str, list[TaskDescription]]:
    return {task.name: task.descriptions for task in tasks}


def _read_all(folder: Path) -> dict[str, list[ExampleRecord]]:
    return {path.stem: read_records(path) for path in sorted(folder.glob("*.jsonl"))}


def measured_steps(folder: RunFolder) -> list[int]:
    """Steps at which a run was measured, in order."""
    matches = (STEP_FOLDER.match(entry.name) for entry in folder.evaluation.glob("step_*"))
    return sorted(int(match[1]) for match in matches if match)


def run_records(folder: RunFolder, *, step: int | None = None) -> dict[str, list[ExampleRecord]]:
    """The records of one measured step of a run, the last one by default, in the order of its tasks' names.

    Raises:
        InputError: the run was not measured then.
    """
    steps = measured_steps(folder)
    if not steps or (step is not None and step not in steps):
        raise InputError(
            f"{folder.path}: not measured{'' if step is None else f' at step {step}'}. "
            f"Measured steps: {', '.join(map(str, steps)) or 'none'}."
        )
    return _read_all(folder.records(steps[-1] if step is None else step, "any").parent)


def _run_side(given: str, folder: RunFolder, machine: Machine, *, step: int | None) -> Side:
    plan = read_plan(folder.plan)
    tasks = evaluation_tasks(plan.config, variables={"RETAIN_CACHE": str(machine.cache_folder)})
    records = run_records(folder, step=step)
    null = _read_all(folder.null_records("any").parent) if step == 0 else {}
    ordered = {task.name: records[task.name] for task in tasks if task.name in records}
    return Side(name=given, records=ordered, descriptions=_by_task(tasks), null=null)


def _file_side(given: str, path: Path, *, metric: str | None, filter_name: str | None) -> Side:
    if _is_own(path):
        records = _read_all(path) if path.is_dir() else {path.stem: read_records(path)}
        return Side(name=given, records=records)
    return Side(name=given, records=read_lm_eval(path, metric=metric, filter_name=filter_name))


def _is_own(path: Path) -> bool:
    """Whether these are records of ours: by the first line."""
    first = next(iter(sorted(path.glob("*.jsonl"))), None) if path.is_dir() else path
    if first is None:
        return False
    with first.open("rb") as lines:
        try:
            value = json.loads(lines.readline())
        except ValueError:
            return False
    return isinstance(value, dict) and "prompt_sha256" in value and "scorer" in value


def _model_side(given: str, model: Path, machine: Machine, settings: ModelSettings) -> Side:
    if settings.suite is None:
        raise InputError(f"{given}: a model is measured with a suite: add --suite SUITE.yaml.")
    variables = {"RETAIN_CACHE": str(machine.cache_folder)}
    tasks = suite_tasks(settings.suite, variables=variables)
    folder = RunFolder(Path(tempfile.mkdtemp(prefix="retain-compare-")))
    request = {
        "model": str(model),
        "suite": str(settings.suite.absolute()),
        "variables": variables,
        "cache": str(machine.cache_folder),
        "precision": settings.precision,
        "device": settings.device,
        "sequence_length_tokens": settings.sequence_length_tokens,
        "max_examples": settings.max_examples,
        "examples_per_batch": LARGEST_EVALUATION_BATCH,
        "timeout_seconds": 600.0,
    }
    write_json(folder.path / "request.json", request)
    complaints: list[str] = []
    argv = module_argv("trainer.evaluate_model", str(folder.path / "request.json"))
    environment = rank_environment(machine, device=settings.device, world_size=1)
    if run_module(argv, environment, complain=complaints.append):
        raise InputError("\n".join(complaints))  # a crash names its log, which stays
    side = Side(
        name=given,
        records=run_records(folder, step=0),
        descriptions=_by_task(tasks),
        null=_read_all(folder.null_records("any").parent),
    )
    shutil.rmtree(folder.path)
    return side

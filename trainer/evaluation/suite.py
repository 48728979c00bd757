"""What is measured: evaluation tasks from the run's own tasks and from a suite file of base abilities.

No data is read here; no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from trainer.config.data_schema import DataSection, Scorer, TaskSection
from trainer.config.errors import ConfigError
from trainer.config.load import load_as
from trainer.config.schema import RunConfig
from trainer.config.sections import Section
from trainer.evaluation.capability_row import Group, TaskDescription
from trainer.evaluation.suite_schema import Suite, SuiteTask

_SCORES: dict[Scorer, str] = {
    "exact_match": "exact match",
    "f1": "word F1",
    "numeric": "numeric match",
    "chrf": "chrF",
}


class EvaluationTask(Section):
    """A named measurement, ready to be run."""

    name: str
    capability: str
    examples: str
    """Name of the held-out examples; tasks that share it measure the same ones."""

    group: Group
    spec: SuiteTask
    labels: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Classes of the head that is measured; none for a language model."""

    trained: TaskSection | None = None
    """The task of the mixture whose held-out part is measured; None for a base ability."""

    @property
    def scorer(self) -> str:
        """Name and version of what turns outputs into numbers: records of different scorers are never joined."""
        match self.spec.kind:
            case "text":
                return "label_nll@1" if self.labels else "token_nll@1"
            case "classify":
                return "head_label@1"
            case "choice":
                return "choice_accuracy_per_byte@1" if self.spec.length_normalised else "choice_accuracy@1"
        pattern = f" of {self.spec.answer_pattern}" if self.spec.answer_pattern else ""
        return f"{self.spec.scorer}@1{pattern}"

    @property
    def descriptions(self) -> list[TaskDescription]:
        """How to read its numbers in the report: one row, or accuracy and macro-F1 of one head's labels."""
        measures = {
            "text": [("loss", "nats/example" if self.labels else "nats/token")],
            "choice": [("accuracy", "share")],
            "generate": [(_SCORES[self.spec.scorer], "share")],
            "classify": [("accuracy", "share"), ("macro-F1", "share")],
        }[self.spec.kind]
        return [
            TaskDescription(
                name=self.name if number == 0 else f"{self.name}-{measure.lower()}",
                capability=self.capability,
                group=self.group,
                kind=self.spec.kind,
                measure=measure,
                unit=unit,
                higher_is_better=self.spec.kind != "text",
                margin=self.spec.margin_in_force,
            )
            for number, (measure, unit) in enumerate(measures)
        ]


def evaluation_tasks(config: RunConfig, *, variables: Mapping[str, str]) -> list[EvaluationTask]:
    """Everything a run measures: loss and score of each trained task, then the base abilities of the suite.

    Raises:
        ConfigError: the suite file is wrong, or a name stands in both.
    """
    tasks = [task for name, section in config.data.tasks.items() for task in _of_trained_task(name, section, config)]
    if config.evaluation.suite is None:
        return tasks
    path = Path(config.evaluation.suite)
    owners = {task.name: task.capability for task in tasks} | {name: name for name in config.data.tasks}
    for base in suite_tasks(path, variables=variables, labels=config.labels):
        name = base.name
        if name in owners:
            raise ConfigError(
                f"{config.evaluation.suite}: tasks.{name}: this is also a trained task (data.tasks.{owners[name]}). "
                "A base ability must not be trained on: rename it or measure something else."
            )
        if base.capability in config.data.tasks:
            raise ConfigError(
                f"{config.evaluation.suite}: tasks.{name}.capability: {base.capability} is a trained task. Rename it."
            )
        clash = {one.name for one in base.descriptions} & {one.name for task in tasks for one in task.descriptions}
        if clash:
            raise ConfigError(
                f"{config.evaluation.suite}: tasks.{name}: {clash.pop()} is measured already. Rename the task."
            )
        tasks.append(base)
    return tasks


def suite_tasks(path: Path, *, variables: Mapping[str, str], labels: tuple[str, ...] = ()) -> list[EvaluationTask]:
    """The measurements of a suite file, for a language model or for a classifier with these labels.

    Raises:
        ConfigError: the suite file is wrong, or has measurements of the other kind of model.
    """
    tasks = []
    for name, spec in load_as(Suite, path, variables=variables).tasks.items():
        if (spec.kind == "classify") != bool(labels):
            found = "classification" if labels else "causal_lm"
            raise ConfigError(
                f"{path}: tasks.{name}.kind: found {spec.kind} under objective {found}: "
                "a classifier answers with its labels (kind: classify), a language model with text (the other kinds)."
            )
        capability = spec.capability or name
        tasks.append(
            EvaluationTask(name=name, capability=capability, examples=name, group="base", spec=spec, labels=labels)
        )
    return tasks


def _of_trained_task(name: str, task: TaskSection, config: RunConfig) -> list[EvaluationTask]:
    specs = {"loss": _spec(task, config.data, kind="text", end_of_text=not config.labels)}
    if config.labels:
        specs["label"] = _spec(task, config.data, kind="classify")
    if (score := task.score) is not None:
        settings = {
            "scorer": score.scorer,
            "answer_pattern": score.answer_pattern,
            "max_new_tokens": score.max_new_tokens,
            "choices": score.choices,
        }
        specs["accuracy" if score.kind == "choice" else score.scorer] = _spec(
            task, config.data, kind=score.kind, **settings
        )
    return [
        EvaluationTask(
            name=f"{name}-{measure}",
            capability=name,
            examples=name,
            group="trained",
            spec=spec,
            labels=config.labels,
            trained=task,
        )
        for measure, spec in specs.items()
    ]


def _spec(task: TaskSection, data: DataSection, *, kind: str, **settings: Any) -> SuiteTask:
    """How the held-out part of a task is measured. Its source and its templates are the task's own."""
    template = task.all_templates[0]
    return SuiteTask(
        kind=kind,  # type: ignore[arg-type]  # one of the words above
        data=task.heldout or task.train,
        prompt=template.prompt,
        response=template.response,
        chat_template=data.chat_template,
        **settings,
    )

"""What is measured: evaluation tasks from the run's own tasks and from a suite file of base abilities.

A suite file is YAML: `tasks:` maps names to the fields of SuiteTask. No data is read here; no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.config.data_schema import DataSection, Source, TaskSection
from trainer.config.errors import ConfigError
from trainer.config.load import load_as
from trainer.config.schema import RunConfig
from trainer.config.sections import Name, PositiveInt, Section
from trainer.evaluation.forgetting import Group, TaskDescription


class SuiteTask(Section):
    """One measurement of one capability."""

    kind: Literal["text", "choice", "generate", "classify"]
    """text: loss of the response. choice: pick among candidates by log-likelihood. generate: answer freely.
    classify: the label of a classification head (objective: classification)."""

    data: Source
    """Examples, in any of the forms of a task's `train`; "id" is used where there is one."""

    prompt: str = ""
    """Jinja template of what the model is given; may be empty for kind text."""

    response: str
    """Jinja template of the measured text (text) or of the right answer (choice, generate)."""

    choices: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Candidates, the same for every example (kind: choice)."""

    choices_column: str | None = None
    """Column that holds each example's list of candidates (kind: choice)."""

    length_normalised: bool = False
    """Compare log-likelihood per UTF-8 byte: for candidates of different lengths (kind: choice)."""

    scorer: Literal["exact_match", "chrf"] = "exact_match"
    """How a generated answer is scored (kind: generate)."""

    max_new_tokens: PositiveInt = 48
    """Longest generated answer, in tokens (kind: generate)."""

    chat_template: bool = False
    """Wrap the prompt in the tokenizer's chat template. Base abilities are raw text unless said otherwise."""

    end_of_text: bool = False
    """Measure the end-of-text token after the response as well (kind: text)."""

    @model_validator(mode="after")
    def _choices_fit_kind(self) -> Self:
        if self.kind == "choice" and bool(self.choices) == (self.choices_column is not None):
            raise ValueError("kind: choice needs either `choices` or `choices_column`")
        if self.kind != "choice" and (self.choices or self.choices_column):
            raise ValueError("`choices` and `choices_column` belong to kind: choice")
        if self.kind != "text" and not self.prompt.strip():
            raise ValueError(f"kind: {self.kind} needs a `prompt`: without one nothing leads to an answer")
        return self


class Suite(Section):
    """A suite file."""

    tasks: Annotated[dict[Name, SuiteTask], Field(min_length=1)]
    """Base abilities, by name."""


class EvaluationTask(Section):
    """A named measurement, ready to be run."""

    name: str
    capability: str
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
        return f"{self.spec.scorer}@1"

    @property
    def descriptions(self) -> list[TaskDescription]:
        """How to read its numbers in the report: one row, or accuracy and macro-F1 of one head's labels."""
        measures = {
            "text": [("loss", "nats/example" if self.labels else "nats/token")],
            "choice": [("accuracy", "share")],
            "generate": [("chrF" if self.spec.scorer == "chrf" else "exact match", "share")],
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
    suite = load_as(Suite, Path(config.evaluation.suite), variables=variables)
    owners = {task.name: task.capability for task in tasks} | {name: name for name in config.data.tasks}
    for name, spec in suite.tasks.items():
        if name in owners:
            raise ConfigError(
                f"{config.evaluation.suite}: tasks.{name}: this is also a trained task (data.tasks.{owners[name]}). "
                "A base ability must not be trained on: rename it or measure something else."
            )
        if (spec.kind == "classify") != (config.objective == "classification"):
            raise ConfigError(
                f"{config.evaluation.suite}: tasks.{name}.kind: found {spec.kind} under objective {config.objective}: "
                "a classifier answers with its labels (kind: classify), a language model with text (the other kinds)."
            )
        tasks.append(EvaluationTask(name=name, capability=name, group="base", spec=spec, labels=config.labels))
    return tasks


def _of_trained_task(name: str, task: TaskSection, config: RunConfig) -> list[EvaluationTask]:
    specs = {"loss": _spec(task, config.data, kind="text", end_of_text=not config.labels)}
    if config.labels:
        specs["label"] = _spec(task, config.data, kind="classify")
    if (score := task.score) is not None:
        settings = {"scorer": score.scorer, "max_new_tokens": score.max_new_tokens, "choices": score.choices}
        specs["accuracy" if score.kind == "choice" else score.scorer] = _spec(
            task, config.data, kind=score.kind, **settings
        )
    return [
        EvaluationTask(
            name=f"{name}-{measure}", capability=name, group="trained", spec=spec, labels=config.labels, trained=task
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

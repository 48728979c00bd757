"""A suite file: `tasks:` maps names to measurements, several of which may belong to one capability."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.config.data_schema import AnswerPattern, Scorer, Source
from trainer.config.sections import Name, PositiveInt, Section

Kind = Literal["text", "choice", "generate", "classify"]
Tier = Literal["pulse", "stage", "full"]

TIERS: dict[Kind, Tier] = {"text": "pulse", "choice": "pulse", "classify": "pulse", "generate": "stage"}
MARGINS: dict[Kind, float] = {"text": 0.05, "choice": 0.01, "classify": 0.01, "generate": 0.02}
"""A loss below it does not matter: points of a share (1 for knowledge, 2 for generated answers), and nats per token."""


class FewShotSection(Section):
    """Solved examples in front of each prompt."""

    data: Source
    """Where they come from, with the columns of the task's own data. The measured example is never among them."""

    num_examples: PositiveInt
    """How many: always the same ones, chosen by the hash of their id."""

    separator: str = "\n\n"
    """Between one and the next."""


class SuiteTask(Section):
    """One measurement of one capability."""

    kind: Kind
    """text: loss of the response. choice: pick among candidates by log-likelihood. generate: answer freely.
    classify: the label of a classification head (objective: classification)."""

    capability: Name | None = None
    """What it is a measurement of; several tasks may share one. Without it, the task's own name."""

    data: Source
    """Examples, in any of the forms of a task's `train`; "id" is used where there is one."""

    prompt: str = ""
    """Jinja template of what the model is given; may be empty for kind text."""

    response: str
    """Jinja template of the measured text (text) or of the right answer (choice, generate)."""

    few_shot: FewShotSection | None = None
    """Solved examples in front of the prompt (kinds choice and generate)."""

    choices: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Candidates, the same for every example (kind: choice)."""

    choices_column: str | None = None
    """Column that holds each example's list of candidates (kind: choice)."""

    length_normalised: bool = False
    """Compare log-likelihood per UTF-8 byte: for candidates of different lengths (kind: choice)."""

    scorer: Scorer = "exact_match"
    """How a generated answer is scored (kind: generate)."""

    answer_pattern: AnswerPattern | None = None
    """Regular expression with one group, which in its last match is the answer; none is a failure of format (kind:
    generate)."""

    max_new_tokens: PositiveInt = 48
    """Longest generated answer, in tokens (kind: generate)."""

    chat_template: bool = False
    """Wrap the prompt in the tokenizer's chat template. Base abilities are raw text unless said otherwise."""

    end_of_text: bool = False
    """Measure the end-of-text token after the response as well (kind: text)."""

    cluster_column: str | None = None
    """Column that says which examples belong together (questions on one passage): they are not independent."""

    margin: Annotated[float, Field(gt=0.0)] | None = None
    """Largest loss that does not matter, in the unit of the measure. Default: 0.05 nats per token (text), 0.01 (choice,
    classify), 0.02 (generate)."""

    recovery_data: Source | None = None
    """Examples for the recovery probe, never measured. Default: those of `data` that are not measured."""

    tier: Tier | None = None
    """When it is measured: while training as well (pulse), after each stage (stage), or only before and after all
    training (full). Default: stage for kind generate, pulse for the others."""

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Self:
        if self.kind == "choice" and bool(self.choices) == (self.choices_column is not None):
            raise ValueError("kind: choice needs either `choices` or `choices_column`")
        if self.kind != "choice" and (self.choices or self.choices_column):
            raise ValueError("`choices` and `choices_column` belong to kind: choice")
        if self.kind != "text" and not self.prompt.strip():
            raise ValueError(f"kind: {self.kind} needs a `prompt`: without one nothing leads to an answer")
        if self.kind != "generate" and self.answer_pattern:
            raise ValueError("`answer_pattern` belongs to kind: generate")
        if self.few_shot and (self.kind not in ("choice", "generate") or self.chat_template):
            raise ValueError("`few_shot` is for the kinds choice and generate, without a chat template")
        return self

    @property
    def margin_in_force(self) -> float:
        """The margin that was asked for, or the default of the kind."""
        return self.margin or MARGINS[self.kind]

    @property
    def tier_in_force(self) -> Tier:
        """The tier that was asked for, or the default of the kind."""
        return self.tier or TIERS[self.kind]


class Suite(Section):
    """A suite file."""

    tasks: Annotated[dict[Name, SuiteTask], Field(min_length=1)]
    """Measurements of base abilities, by name."""

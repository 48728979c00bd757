"""What a user can ask of the data: sources, formats, templates, the mixture over tasks and over time."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trainer.config.course_schema import ReplaySection, StageSection, Weight, course_complaint
from trainer.config.sections import Name, PositiveInt, Section
from trainer.config.source_complaint import one_complaint

Format = Literal["templates", "instruction", "completion", "text", "labelled", "ner", "translation", "chat"]


class HubSource(Section):
    """A data set of the Hugging Face hub."""

    hub: str
    """Name, such as `Abirate/english_quotes`. Read from the local cache where the machine is offline."""

    subset: str | None = None
    """Configuration of the data set, where it has several."""

    split: str = "train"
    """Part of the data set."""

    revision: str | None = None
    """Commit or tag; without it, whatever the cache or the hub names as newest."""


class LmEvalSource(Section):
    """A task of lm-evaluation-harness, for evaluation alone: its contexts and continuations, scored as ours."""

    lm_eval: str
    """Name of the task, such as `arc_easy`. Its rows: id, prompt, answer and, of a multiple choice, choices."""

    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples in front of each document; without it, as many as the task itself says."""

    include_path: str | None = None
    """Folder with task files of one's own, which may hold Python code that is run."""

    seed: int = 1234
    """Of the choice of solved examples (the harness's default)."""


Source = Annotated[
    str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | HubSource | LmEvalSource,
    one_complaint(HubSource, LmEvalSource),
]
"""A file, a folder, a pattern such as data/*.jsonl.gz, several of them, a hub data set, or a task of lm-eval."""


def describe(source: Source) -> str:
    """The source in one line, for messages."""
    if isinstance(source, HubSource):
        return f"hub {source.hub} {source.split}"
    if isinstance(source, LmEvalSource):
        return f"lm-eval {source.lm_eval}"
    return source if isinstance(source, str) else ", ".join(source)


class TemplateSection(Section):
    """One way to put an example into words."""

    prompt: str = ""
    """Jinja template of what the model is given, over the columns of an example. Not trained on."""

    response: str
    """Jinja template of the answer. Its tokens, and the end-of-text token after it, carry the loss.
    Under `objective: classification` it is the label."""


FORMATS: dict[Format, TemplateSection] = {
    "instruction": TemplateSection(
        prompt="{{ instruction }}{% if input is defined and input %}\n{{ input }}{% endif %}\n", response="{{ output }}"
    ),
    "completion": TemplateSection(prompt="{{ prompt }}", response="{{ completion }}"),
    "text": TemplateSection(response="{{ text }}"),
    "labelled": TemplateSection(prompt="{{ text }}\nLabel:", response=" {{ label }}"),
    "ner": TemplateSection(prompt="List the named entities.\n{{ text }}\nEntities:", response=" {{ entities }}"),
    "translation": TemplateSection(
        prompt="Translate into {{ language }}.\n{{ source }}\nTranslation:", response=" {{ target }}"
    ),
    "chat": TemplateSection(prompt="{{ messages[:-1] }}", response="{{ messages[-1] }}"),
}
"""The templates of the named formats, over the columns that the field uses for them. Of a chat they only tell which
columns it reads: the model's own chat template puts it into words."""


Scorer = Literal["exact_match", "f1", "numeric", "chrf"]
"""How a generated answer is scored: see trainer/evaluation/scorers.py."""


def _one_group(pattern: str) -> str:
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if num_groups != 1:
        raise ValueError(f"has {num_groups} groups; put parentheses around the answer and nothing else")
    return pattern


AnswerPattern = Annotated[str, AfterValidator(_one_group)]
"""A regular expression with one group: the answer."""


class ScoreSection(Section):
    """How the held-out answers of a task are scored, beside their loss."""

    kind: Literal["choice", "generate"]
    """choice: the label with the highest log-likelihood answers. generate: greedy decoding, then `scorer`."""

    choices: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """The labels to choose from; white space before the response goes before each of them (kind: choice)."""

    scorer: Scorer = "exact_match"
    """exact_match: equal after trimming, 0 or 1. f1: of the words. numeric: the last number is the right one. chrf:
    chrF2 of sacrebleu per sentence, 0 to 1 (kind: generate)."""

    answer_pattern: AnswerPattern | None = None
    """Regular expression with one group, which in its last match is the answer; none is a failure of format (kind:
    generate)."""

    max_new_tokens: PositiveInt = 48
    """Longest generated answer, in tokens (kind: generate)."""

    @model_validator(mode="after")
    def _choices_fit_kind(self) -> Self:
        if self.kind == "choice" and len(set(self.choices)) < 2:
            raise ValueError("kind: choice needs at least two different `choices`")
        if self.kind == "generate" and self.choices:
            raise ValueError("`choices` belongs to kind: choice; remove it or change the kind")
        if self.kind == "choice" and self.answer_pattern:
            raise ValueError("`answer_pattern` belongs to kind: generate; remove it or change the kind")
        return self


class TaskSection(Section):
    """One task of the mixture: its sources, how its examples are put into words, and its share."""

    train: Source
    """Training examples: JSONL, JSON, CSV, Parquet or plain text (a paragraph an example), also gzipped."""

    heldout: Source | None = None
    """Examples never trained on: measured before step 0 and after training. Without it, `heldout_share` of `train`."""

    heldout_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of `train` that is held out where there is no `heldout`, chosen by the hash of each example's question."""

    streaming: bool = False
    """Read and tokenise `train` while training and keep nothing of it on disk: for sources larger than that. Needs a
    `heldout`, explicit weights and shares of examples. A resumed run reads `train` again up to its place."""

    columns: Annotated[dict[str, str], Field(default_factory=dict)]
    """Names that templates use: columns of the source that hold them, where they differ."""

    format: Format = "templates"
    """Named templates for the usual shapes of data, or `templates`: those given here."""

    prompt: str | None = None
    """Jinja template of what the model is given, over the columns of an example. Not trained on."""

    response: str | None = None
    """Jinja template of the answer. Its tokens, and the end-of-text token after it, carry the loss.
    Under `objective: classification` it is the label."""

    templates: Annotated[tuple[TemplateSection, ...], Field(strict=False)] = ()
    """Several ways to put an example into words, instead of one prompt and response. Which one an example gets follows
    from its id: the same one in every run."""

    train_on: Literal["all", "last"] = "all"
    """Which of the assistant's turns carry the loss (format: chat)."""

    weight: Weight = 1.0
    """Share relative to the other tasks' weights: a number, or a schedule over the run (`ramp`, `steps`). Under
    data.mixture.weights: proportional it multiplies the share that follows from the size. 0: only replayed. Where
    there are `stages`, their weights count instead."""

    score: ScoreSection | None = None
    """Task score on held-out examples. Without it, only the loss is measured."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        given = [name for name, text in (("prompt", self.prompt), ("response", self.response)) if text is not None]
        if self.format != "templates" and (given or self.templates):
            raise ValueError(f"format: {self.format} brings its own templates; remove it or {(*given, 'templates')[0]}")
        if self.format == "templates" and self.templates and given:
            raise ValueError(f"`templates` and `{given[0]}` are both given; keep one of them")
        if self.streaming and self.heldout is None:
            raise ValueError("`streaming` needs a `heldout`: a split would have to read all of `train` first")
        if self.format != "chat" and self.train_on != "all":
            raise ValueError("`train_on` belongs to format: chat; remove it")
        if self.format == "templates" and not self.templates and self.response is None:
            raise ValueError("needs a `response` (and usually a `prompt`), or `templates`, or a named `format`")
        return self

    @property
    def all_templates(self) -> tuple[TemplateSection, ...]:
        """The templates in force."""
        if self.format != "templates":
            return (FORMATS[self.format],)
        return self.templates or (TemplateSection(prompt=self.prompt or "", response=self.response or ""),)


class MixtureSection(Section):
    """How often each task is drawn. At every point of the run the realised share differs by at most one example (unit:
    examples), or by at most the longest example (unit: tokens)."""

    unit: Literal["examples", "tokens"] = "examples"
    """What shares are shares of. tokens: a task with long examples is drawn less often."""

    weights: Literal["explicit", "proportional"] = "explicit"
    """explicit: the tasks' `weight`. proportional: their size in `unit`, after `cap` and `temperature`."""

    cap: PositiveInt | None = None
    """Size at which a task counts at most (proportional; K of Raffel et al. 2020, arXiv 1910.10683, section 3.5.2)."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sizes are raised to 1 / temperature (proportional): 1 keeps them, large values make tasks equal."""

    @model_validator(mode="after")
    def _sizes_matter(self) -> Self:
        if self.weights == "explicit" and (self.cap is not None or self.temperature != 1.0):
            raise ValueError("`cap` and `temperature` belong to weights: proportional; remove them or set it")
        return self


class DataSection(Section):
    """What the model is trained on."""

    sequence_length_tokens: Annotated[int, Field(ge=8)]
    """Longest example, prompt and response together, in tokens. At most the model's context."""

    on_overlength: Literal["error", "drop", "truncate"] = "error"
    """An example that is too long: stop, leave it out, or cut its end off (counted and told). Cut so that no trained
    token is left, it counts as a bad example. Held-out examples are never cut: those that do not fit are left out."""

    on_bad_example: Literal["error", "skip"] = "error"
    """An example that cannot be read or put into words: stop and name them, or leave them out (counted and told)."""

    leakage: Literal["error", "warn", "off"] = "error"
    """A held-out example that is also, word for word or nearly, trained on: stop, tell, or do not look."""

    near_duplicate_similarity: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Share of common word 5-grams (Jaccard) from which two texts count as nearly the same."""

    chat_template: bool = False
    """Wrap each prompt in the tokenizer's chat template, as one user turn. An error where it has none."""

    packing: bool = False
    """Put several examples into each row of `sequence_length_tokens`, none of which sees another one."""

    padding: Literal["batch", "sequence_length"] = "batch"
    """Fill rows up to the longest of their micro-batch, or always to `sequence_length_tokens` (equal shapes)."""

    mixture: MixtureSection = MixtureSection()
    """How often each task is drawn."""

    stages: Annotated[tuple[StageSection, ...], Field(strict=False)] = ()
    """Parts of the run, one after the other, each with weights of its own."""

    replay: ReplaySection | None = None
    """What every stage without a `replay` of its own repeats."""

    stream_window_examples: PositiveInt = 10_000
    """Examples of a streamed task that are in memory and are shuffled together."""

    preparation_processes: PositiveInt | Literal["auto"] = "auto"
    """Processes that read and tokenise large sources before the ranks start. auto: one for each core."""

    preparation_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """How long to wait for a sign of life of another process that prepares the same data."""

    tasks: Annotated[dict[Name, TaskSection], Field(min_length=1)]
    """The tasks, by name."""

    @model_validator(mode="after")
    def _streams_need_no_sizes(self) -> Self:
        streamed = [name for name, task in self.tasks.items() if task.streaming]
        found = "weights: proportional" if self.mixture.weights == "proportional" else ""
        found = found or ("unit: tokens" if self.mixture.unit == "tokens" else "")
        if streamed and found:
            raise ValueError(
                f"mixture.{found} needs the size or the lengths of each task, and tasks.{streamed[0]} is streamed: "
                "nobody knows them before its end. Set explicit weights of examples, or streaming: false"
            )
        return self

    @model_validator(mode="after")
    def _course_fits_tasks(self) -> Self:
        weights = {name: task.weight for name, task in self.tasks.items()}
        if (complaint := course_complaint(weights, stages=self.stages, replay=self.replay)) is not None:
            raise ValueError(complaint)
        return self

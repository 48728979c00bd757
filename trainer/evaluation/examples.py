"""Evaluation examples as token ids: the same ones at every measurement, chosen by hash of their id."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config.data_schema import describe
from trainer.config.errors import DataError
from trainer.data.examples import task_examples
from trainer.data.sources import BadExamples, Row, read_rows
from trainer.data.templates import Rendered, TaskTemplate
from trainer.data.tokenize import PromptEncoder
from trainer.evaluation.suite import EvaluationTask, SuiteTask


@dataclass(frozen=True, slots=True)
class EvaluationExample:
    """One example of one task."""

    example_id: str
    prompt: str
    target: str
    candidates: tuple[str, ...]
    """Texts to score: the response (text), all choices (choice), all labels (a classifier), none (generate)."""

    prompt_ids: tuple[int, ...]
    candidate_ids: tuple[tuple[int, ...], ...]

    @property
    def prompt_sha256(self) -> str:
        """Hash of exactly what the model is given."""
        return hashlib.sha256(json.dumps([self.prompt_ids, self.candidate_ids]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """The chosen examples of a task, and how many did not fit the model's context or were bad."""

    examples: list[EvaluationExample]
    num_dropped_overlength: int
    num_bad: int = 0
    sources: Sequence[Rendered] = ()
    """The chosen examples as texts, in the same order: what must not be trained on."""


def build_examples(
    task: EvaluationTask,
    *,
    encoder: PromptEncoder,
    context_tokens: int,
    max_examples: int,
    on_bad_example: Literal["error", "skip"] = "error",
) -> EvaluationData:
    """Read, render, choose and encode the examples of a task.

    Raises:
        DataError: malformed examples, two examples with one id, or none that fits.
    """
    spec = task.spec
    bad = BadExamples(on_bad_example)
    rendered = list(_rendered(task, bad))
    _refuse_repeated_ids(rendered)
    encoded = []
    for row, example in sorted(rendered, key=lambda pair: _hash(pair[1].example_id)):
        try:
            encoded.append((_encode(spec, example, row=row.values, encoder=encoder, where=row.where), example))
        except DataError as error:
            bad.add(str(error))
    num_bad = bad.finish(f"{task.name}: held-out examples")
    fitting = [pair for pair in encoded if _length(pair[0], spec) <= context_tokens]
    if not fitting:
        raise DataError(f"{describe(spec.data)}: no example of {task.name} fits the model's {context_tokens} tokens.")
    examples, sources = zip(*fitting[:max_examples], strict=True)
    return EvaluationData(list(examples), len(encoded) - len(fitting), num_bad, sources)


def _rendered(task: EvaluationTask, bad: BadExamples) -> Iterator[tuple[Row, Rendered]]:
    if task.trained is not None:
        yield from task_examples(task.capability, task.trained, part="heldout", bad=bad)
        return
    template = TaskTemplate(task=task.capability, prompt=task.spec.prompt, response=task.spec.response)
    for row in read_rows(task.spec.data, columns={}, bad=bad):
        try:
            rendered = template.render(row.values, where=row.where)
        except DataError as error:
            bad.add(str(error))
        else:
            yield row, rendered


def _hash(example_id: str) -> str:
    return hashlib.sha256(example_id.encode()).hexdigest()


def _refuse_repeated_ids(rendered: Iterable[tuple[Row, Rendered]]) -> None:
    seen: dict[str, str] = {}
    for row, example in rendered:
        if example.example_id in seen:
            raise DataError(f"{row.where}: id {example.example_id!r} is also at {seen[example.example_id]}.")
        seen[example.example_id] = row.where


def _encode(
    spec: SuiteTask, example: Rendered, *, row: Mapping[str, Any], encoder: PromptEncoder, where: str
) -> EvaluationExample:
    if encoder.labels:
        encoder.label_index(example.response, where=where)
        return EvaluationExample(
            example_id=example.example_id,
            prompt=example.prompt,
            target=example.response.strip(),
            candidates=encoder.labels,
            prompt_ids=tuple(encoder.whole_ids(example.prompt)),
            candidate_ids=(),
        )
    candidates = _candidates(spec, example, row=row, where=where)
    encode = encoder.response_ids if spec.kind == "text" and spec.end_of_text else encoder.text_ids
    bare_text = spec.kind == "text" and not example.prompt
    prompt_ids = (
        encoder.start_ids if bare_text else encoder.prompt_ids(example.prompt, chat_template=spec.chat_template)
    )
    candidate_ids = tuple(tuple(encode(candidate)) for candidate in candidates)
    if any(len(prompt_ids) + len(ids) < 2 for ids in candidate_ids):
        raise DataError(f"{where}: a text of one token has nothing to be predicted from. Remove the row.")
    return EvaluationExample(
        example_id=example.example_id,
        prompt=example.prompt,
        target=example.response,
        candidates=candidates,
        prompt_ids=tuple(prompt_ids),
        candidate_ids=candidate_ids,
    )


def _candidates(spec: SuiteTask, example: Rendered, *, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    match spec.kind:
        case "generate":
            return ()
        case "text":
            return (example.response,)
    column = spec.choices_column
    if column is not None and not isinstance(row.get(column), list):
        raise DataError(f"{where}: column {column!r}: found {row.get(column)!r}, wanted a list of candidates.")
    texts = tuple(map(str, row[column])) if column is not None else spec.choices
    # Candidates take the white space before the response: whoever writes " {{ label }}" means it for all of them.
    lead = example.response[: len(example.response) - len(example.response.lstrip())]
    candidates = tuple(lead + text.strip() for text in texts)
    if any(not text.strip() for text in texts):
        raise DataError(f"{where}: a candidate is empty: nothing to be likely or unlikely. Remove it.")
    if example.response not in candidates:
        raise DataError(f"{where}: the right answer {example.response!r} is not among the candidates {candidates}.")
    return candidates


def _length(example: EvaluationExample, spec: SuiteTask) -> int:
    longest = max((len(ids) for ids in example.candidate_ids), default=0)
    return len(example.prompt_ids) + (spec.max_new_tokens if spec.kind == "generate" else longest)

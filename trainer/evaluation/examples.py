"""Evaluation examples as token ids: the same ones at every measurement, chosen by hash of their id."""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.data_schema import describe
from trainer.config.errors import DataError
from trainer.data.sources import Row
from trainer.data.templates import Rendered
from trainer.data.tokenize import PromptEncoder
from trainer.evaluation.suite import EvaluationTask
from trainer.evaluation.suite_schema import FewShotSection, SuiteTask


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
    cluster: str | None = None
    """Examples of one cluster are not independent."""

    @property
    def prompt_sha256(self) -> str:
        """Hash of exactly what the model is given."""
        return hashlib.sha256(json.dumps([self.prompt_ids, self.candidate_ids]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """The chosen examples of a task, and how many that would have been chosen did not fit the model's context."""

    examples: list[EvaluationExample]
    num_dropped_overlength: int
    sources: Sequence[Rendered] = ()
    """The chosen examples as texts, in the same order: what must not be trained on."""


class Selection:
    """The examples of one evaluation task, chosen by the hash of their id among all that are shown to it.

    Every example is checked; token ids are made only of those that may be chosen. So memory does not grow with the
    number of examples, and what is chosen does not depend on their order.
    """

    def __init__(
        self,
        task: EvaluationTask,
        *,
        encoder: PromptEncoder,
        context_tokens: int,
        max_examples: int,
        solved: Sequence[Rendered] = (),
    ) -> None:
        """`solved`: one more example than stands in front of each prompt, so that none stands in front of itself."""
        self.task = task
        self._encoder, self._context_tokens, self._max_examples = encoder, context_tokens, max_examples
        self._solved = solved
        self._chosen: list[_Chosen] = []
        self._overlength: list[str] = []
        self._repeated: list[tuple[str, str]] = []

    def consider(self, row: Row, example: Rendered) -> Callable[[], None]:
        """Look at one example.

        Returns:
            What shows it to the selection: nothing has changed until that is called.

        Raises:
            DataError: it cannot be measured.
        """
        spec = self.task.spec
        candidates = self._encoder.labels or _candidates(spec, example, row=row.values, where=row.where)
        if self._encoder.labels:
            self._encoder.label_index(example.response, where=row.where)
        key = _hash(example.example_id)
        place = bisect_left(self._chosen, key, key=lambda chosen: chosen.key)
        if place < len(self._chosen) and self._chosen[place].key == key:
            first = self._chosen[place].source.where
            complaint = f"{row.where}: id {example.example_id!r} is also at {first}."
            return lambda: self._repeated.append((key, complaint))
        if place == self._max_examples:
            return lambda: None
        encoded = _encode(
            spec, with_solved(example, self._solved, spec.few_shot), candidates, encoder=self._encoder, row=row
        )
        if _length(encoded, spec) > self._context_tokens:
            return lambda: self._leave_out(key)
        return lambda: self._take(place, _Chosen(key, encoded, example))

    def _take(self, place: int, chosen: "_Chosen") -> None:
        self._chosen.insert(place, chosen)
        del self._chosen[self._max_examples :]
        self._forget_others()

    def _leave_out(self, key: str) -> None:
        self._overlength.append(key)
        self._forget_others()

    def _forget_others(self) -> None:
        """What is beyond the last place says nothing, in whatever order it came."""
        if len(self._chosen) == self._max_examples:
            last = self._chosen[-1].key
            self._overlength = [key for key in self._overlength if key < last]
            self._repeated = [(key, complaint) for key, complaint in self._repeated if key <= last]

    @property
    def num_chosen(self) -> int:
        """Examples chosen so far."""
        return len(self._chosen)

    @property
    def repeated(self) -> list[str]:
        """A complaint about each example that has the id of a chosen one."""
        return [complaint for _, complaint in self._repeated]

    def data(self) -> EvaluationData:
        """What was chosen.

        Raises:
            DataError: none fits.
        """
        if not self._chosen:
            raise DataError(
                f"{describe(self.task.spec.data)}: no example of {self.task.name} fits the model's "
                f"{self._context_tokens} tokens."
            )
        examples, sources = [one.example for one in self._chosen], [one.source for one in self._chosen]
        return EvaluationData(examples, len(self._overlength), sources)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An example that is measured, by the hash of its id."""

    key: str
    example: EvaluationExample
    source: Rendered


def _hash(example_id: str) -> str:
    return hashlib.sha256(example_id.encode()).hexdigest()


def with_solved(example: Rendered, solved: Sequence[Rendered], few_shot: FewShotSection | None) -> Rendered:
    """The example with solved ones in front of its prompt, none of which asks the same question."""
    if few_shot is None:
        return example
    others = [one for one in solved if one.bare_prompt != example.bare_prompt][: few_shot.num_examples]
    header = "".join(f"{one.prompt}{one.response}{few_shot.separator}" for one in others)
    return replace(example, prompt=header + example.prompt)


def _encode(
    spec: SuiteTask, example: Rendered, candidates: tuple[str, ...], *, encoder: PromptEncoder, row: Row
) -> EvaluationExample:
    answers, where = candidates, row.where
    if encoder.labels:
        answers, prompt_ids = (), encoder.whole_ids(example.prompt)
    elif example.messages:
        prompt_ids, answer_ids = encoder.turn_ids(example)
    elif spec.kind == "text" and not example.prompt:
        prompt_ids = encoder.start_ids
    else:
        prompt_ids = encoder.prompt_ids(example.prompt, chat_template=spec.chat_template)
    if example.messages and spec.kind == "text":
        candidate_ids = [answer_ids]  # with the end of the turn
    else:
        encode = encoder.response_ids if spec.kind == "text" and spec.end_of_text else encoder.text_ids
        candidate_ids = [encode(answer) for answer in answers]
    if any(len(prompt_ids) + len(ids) < 2 for ids in candidate_ids):
        raise DataError(f"{where}: a text of one token has nothing to be predicted from. Remove the row.")
    return EvaluationExample(
        example_id=example.example_id,
        prompt=example.prompt,
        target=example.response.strip() if encoder.labels else example.response,
        candidates=candidates,
        prompt_ids=tuple(prompt_ids),
        candidate_ids=tuple(map(tuple, candidate_ids)),
        cluster=_cluster(spec, row),
    )


def _cluster(spec: SuiteTask, row: Row) -> str | None:
    if spec.cluster_column is None:
        return None
    if row.values.get(spec.cluster_column) is None:
        raise DataError(f"{row.where}: no column {spec.cluster_column!r} (cluster_column); name the group of each row.")
    return str(row.values[spec.cluster_column])


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

"""Scores worked by hand on a table of odds: what is summed, what is picked, what is recorded.

Shapes: B sequences, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.data.collate import Batch
from trainer.distributed import World
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.score import score_task
from trainer.evaluation.suite import EvaluationTask
from trainer.evaluation.suite_schema import SuiteTask

V = 64
ODDS = {"p": {"x": 0.5, "y": 0.4}, "x": {"x": 0.5}, "y": {"y": 0.1}}
"""Probability of a letter after another; the rest is spread evenly."""

# fp32 sums of at most three terms of size 2.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Padding:
    """All that scoring asks of an encoder where nothing is generated."""

    pad_token_id: int = 0


class TableEngine:
    """Says what a table of odds says."""

    cache_obstacle = "a stand-in takes each candidate as a text of its own"

    def __init__(self, log_odds_VV: Tensor) -> None:
        self.world = World(0, 1, 0, torch.device("cpu"))
        self.log_odds_VV = log_odds_VV
        self.num_batches = 0
        self.with_graph = False

    def forward(self, batch: Batch) -> Tensor:
        self.num_batches += 1
        logits_BTV = self.log_odds_VV[batch.input_ids_BT]
        self.with_graph |= logits_BTV.requires_grad
        return logits_BTV


def ids_of(text: str) -> tuple[int, ...]:
    """One id a letter; 0 is the padding."""
    return tuple(ord(letter) - ord("@") for letter in text)


def table() -> Tensor:
    """Logarithms of ODDS; a flat distribution after every other letter."""
    log_odds_VV = torch.zeros(V, V)
    for letter, after in ODDS.items():
        row_V = torch.full((V,), (1.0 - sum(after.values())) / (V - len(after)))
        for following, share in after.items():
            row_V[ids_of(following)[0]] = share
        log_odds_VV[ids_of(letter)[0]] = row_V.log()
    return log_odds_VV


def example_of(prompt: str, *, target: str, candidates: Sequence[str], number: int = 0) -> EvaluationExample:
    return EvaluationExample(
        example_id=f"id{number}",
        prompt=prompt,
        target=target,
        candidates=tuple(candidates),
        prompt_ids=ids_of(prompt),
        candidate_ids=tuple(ids_of(candidate) for candidate in candidates),
    )


def task_of(kind: str, **fields: Any) -> EvaluationTask:
    fields |= {"choices_column": "c"} if kind == "choice" else {}
    spec = SuiteTask.model_validate({"kind": kind, "data": "d", "prompt": "p", "response": "r", **fields})
    return EvaluationTask(name="n", capability="n", examples="n", group="base", spec=spec)


def scored(
    engine: Any,
    task: EvaluationTask,
    *examples: EvaluationExample,
    examples_per_batch: int = 4,
    check_stop: Callable[[], None] = lambda: None,
) -> list[ExampleRecord]:
    padding: Any = Padding()
    return score_task(
        engine, task, examples, encoder=padding, examples_per_batch=examples_per_batch, check_stop=check_stop
    ).records


def test_a_text_costs_the_summed_nats_of_its_response_and_weighs_its_tokens() -> None:
    # p -> x 0.5, x -> x 0.5: ln 2 + ln 2.  p -> y 0.4, y -> y 0.1, y -> y 0.1: ln 2.5 + 2 ln 10.
    examples = [
        example_of("p", target="xx", candidates=["xx"], number=0),
        example_of("p", target="yyy", candidates=["yyy"], number=1),
    ]
    records = scored(TableEngine(table()), task_of("text"), *examples)
    assert [record.weight for record in records] == [2.0, 3.0]
    wanted = [2 * math.log(2), math.log(2.5) + 2 * math.log(10)]
    assert [record.value for record in records] == pytest.approx(wanted, abs=ROUNDING)


def test_the_prompt_carries_no_loss() -> None:
    # y -> p and p -> p are unlikely; only p -> x, 0.5, is measured.
    (record,) = scored(TableEngine(table()), task_of("text"), example_of("ypp", target="x", candidates=["x"]))
    assert (record.value, record.weight) == (pytest.approx(math.log(2), abs=ROUNDING), 1.0)


def test_a_response_after_nothing_counts_from_its_second_token() -> None:
    # Nothing predicts the first token of a text: of p x x two are measured, 0.5 each.
    (record,) = scored(TableEngine(table()), task_of("text"), example_of("", target="pxx", candidates=["pxx"]))
    assert (record.value, record.weight) == (pytest.approx(2 * math.log(2), abs=ROUNDING), 2.0)


def test_the_most_likely_candidate_is_picked() -> None:
    # After p: x 0.5, y 0.4, anything else (1 - 0.9) / 62.
    examples = [
        example_of("p", target="x", candidates=["z", "y", "x"], number=0),
        example_of("p", target="y", candidates=["y", "x"], number=1),
        example_of("p", target="y", candidates=["z", "y"], number=2),
    ]
    records = scored(TableEngine(table()), task_of("choice"), *examples)
    assert [record.answer for record in records] == ["x", "x", "y"]
    assert [(record.value, record.weight) for record in records] == [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)]


def test_a_long_candidate_wins_only_where_likelihoods_are_compared_per_byte() -> None:
    # "xx": 2 ln 2 = 1.39 nats, 0.69 a byte.  "y": ln 2.5 = 0.92 nats, 0.92 a byte.
    example = example_of("p", target="xx", candidates=["xx", "y"])
    engine = TableEngine(table())
    (summed,) = scored(engine, task_of("choice"), example)
    (per_byte,) = scored(engine, task_of("choice", length_normalised=True), example)
    assert (summed.answer, summed.value, summed.scorer) == ("y", 0.0, "choice_accuracy@1")
    assert (per_byte.answer, per_byte.value, per_byte.scorer) == ("xx", 1.0, "choice_accuracy_per_byte@1")


def test_a_length_is_counted_in_bytes_not_in_characters_or_tokens() -> None:
    # Both candidates are one token.  A: x, 0.5, one byte: 0.69 a byte.  B: y, 0.4, written with a two-byte letter:
    # 0.92 / 2 = 0.46 a byte.  Per character or per token A would win.
    example = EvaluationExample(
        example_id="id",
        prompt="p",
        target="\u00ff",
        candidates=("x", "\u00ff"),
        prompt_ids=ids_of("p"),
        candidate_ids=(ids_of("x"), ids_of("y")),
    )
    (record,) = scored(TableEngine(table()), task_of("choice", length_normalised=True), example)
    assert record.answer == "\u00ff"


def test_of_equally_likely_candidates_the_first_is_picked() -> None:
    (record,) = scored(TableEngine(table()), task_of("choice"), example_of("p", target="b", candidates=["a", "b"]))
    assert record.answer == "a"


def test_a_record_tells_what_was_given_and_what_was_wanted() -> None:
    example = example_of("p", target="x", candidates=["x"], number=4)
    (record,) = scored(TableEngine(table()), task_of("text"), example)
    assert (record.id, record.prompt, record.target, record.answer) == ("id4", "p", "x", None)
    assert (record.prompt_sha256, record.scorer) == (example.prompt_sha256, "token_nll@1")


def test_whether_to_stop_is_asked_before_each_batch() -> None:
    # 13 texts in 4 batches: 4 questions; the third one ends it after 2 batches.
    asked: list[int] = []

    def stop_at_third() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    examples = [example_of("p", target="x", candidates=["x"], number=number) for number in range(13)]
    engine = TableEngine(table())
    with pytest.raises(KeyboardInterrupt):
        scored(engine, task_of("text"), *examples, check_stop=stop_at_third)
    assert engine.num_batches == 2
    engine = TableEngine(table())
    scored(engine, task_of("text"), *examples, check_stop=lambda: asked.append(1))
    assert (len(asked), engine.num_batches) == (3 + 4, 4)


def test_a_score_keeps_no_graph() -> None:
    engine = TableEngine(table().requires_grad_())
    scored(engine, task_of("text"), example_of("p", target="x", candidates=["x"]))
    assert not engine.with_graph

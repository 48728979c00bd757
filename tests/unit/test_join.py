"""Like is compared with like, or not at all: whatever does not match is refused in one line, never warned about."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.test_forgetting import losses, record, scores
from trainer.config.errors import InputError
from trainer.evaluation.join import JoinError, join, same_outputs
from trainer.evaluation.records import ExampleRecord


def refusal(before: Sequence[ExampleRecord], after: Sequence[ExampleRecord]) -> str:
    with warnings.catch_warnings(record=True) as warned, pytest.raises(JoinError) as caught:
        join("quiz", before=before, after=after)
    assert warned == []
    assert isinstance(caught.value, InputError)  # exit code 2, no traceback
    message = str(caught.value)
    assert message.startswith("task quiz: ")
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_pairs_are_of_one_id_and_sorted_by_it() -> None:
    before, after = scores(0, 1, 1), scores(1, 0, 1)
    pairs = join("quiz", before=before[::-1], after=[after[1], after[0], after[2]])
    assert pairs == list(zip(before, after, strict=True))


def test_an_example_that_is_only_on_one_side_is_refused() -> None:
    assert "1 id(s) are only in the records before training: 'e002'. " in refusal(scores(0, 1, 1), scores(0, 1))
    assert "1 id(s) are only in the records after training: 'e002'. " in refusal(scores(0, 1), scores(0, 1, 1))


def test_a_repeated_id_is_refused_on_either_side() -> None:
    once, twice = scores(0, 1), [*scores(0, 1), record("e001", 1)]
    assert "1 id(s) occur more than once before training: 'e001'" in refusal(twice, once)
    assert "1 id(s) occur more than once after training: 'e001'" in refusal(once, twice)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("prompt_sha256", {"prompt_sha256": "sha-other"}),
        ("target", {"target": "other"}),
        ("scorer", {"scorer": "exact_match@2"}),
        ("weight", {"weight": 2.0}),
        ("cluster", {"cluster": "passage 1"}),
    ],
)
def test_examples_that_are_not_the_same_are_refused(field: str, changed: dict[str, Any]) -> None:
    before = losses(40, 50)
    other = [before[0], replace(before[1], **changed)]
    for message in (refusal(before, other), refusal(other, before)):
        assert f"1 id(s) differ in {field} before and after: 'e001'. " in message
        assert "easure both models again" in message


def test_another_cluster_is_as_bad_as_none() -> None:
    before = [replace(one, cluster="passage 1") for one in scores(0, 1)]
    assert "differ in cluster" in refusal(before, [before[0], replace(before[1], cluster="passage 2")])
    assert join("quiz", before=before, after=before)


def test_only_a_few_ids_are_named_but_all_are_counted() -> None:
    before = scores(*[1] * 12)
    message = refusal(before, [replace(one, scorer="exact_match@2") for one in before])
    assert "12 id(s) differ in scorer before and after: 'e000', 'e001', 'e002', 'e003', 'e004' and 7 more." in message


def test_two_scorers_in_one_task_are_refused() -> None:
    mixed = [scores(0, 1)[0], replace(scores(0, 1)[1], scorer="chrf@1")]
    assert "several scorers" in refusal(mixed, mixed)


def test_fewer_than_two_examples_are_refused() -> None:
    assert "1 example(s)" in refusal(scores(1), scores(0))
    assert "0 example(s)" in refusal([], [])


@pytest.mark.parametrize(
    "changed", [{"value": 0.0}, {"answer": "other"}, {"candidate_nats": (1.0, 2.5)}, {"is_parsed": False}]
)
def test_outputs_are_the_same_only_if_every_number_and_answer_is(changed: dict[str, Any]) -> None:
    before = [replace(one, candidate_nats=(1.0, 2.0)) for one in scores(1, 1)]
    assert same_outputs(join("quiz", before=before, after=list(before)))
    assert not same_outputs(join("quiz", before=before, after=[before[0], replace(before[1], **changed)]))


def test_what_is_compared_with_the_base_alone_is_no_output() -> None:
    # The base has no divergence from itself in its records; a model trained by nothing has: 0.
    before = losses(40, 50)
    after = [replace(one, kl_nats=0.0, num_agreeing_tokens=10) for one in before]
    assert same_outputs(join("prose", before=before, after=after))

"""The row that joined records give: its direction, its flips, its p, and what was lost."""

import math
from dataclasses import asdict, replace

import pytest

from trainer.evaluation.capability_row import LostExample, TaskDescription
from trainer.evaluation.forgetting import compare_task
from trainer.evaluation.join import JoinError
from trainer.evaluation.records import ExampleRecord

QUIZ = TaskDescription(
    name="quiz",
    capability="general knowledge",
    group="base",
    kind="generate",
    measure="exact match",
    unit="share",
    higher_is_better=True,
    margin=0.02,
)
CHOICE = replace(QUIZ, kind="choice", measure="accuracy", margin=0.01)
PROSE = TaskDescription(
    name="prose",
    capability="prose",
    group="base",
    kind="text",
    measure="loss",
    unit="nats/token",
    higher_is_better=False,
    margin=0.05,
)

ROUNDING = 1e-12
Z_SQUARED = 3.841458820694124  # 95 % quantile of chi squared with one degree of freedom


def record(key: str, value: float, *, weight: float = 1.0, answer: str | None = "said") -> ExampleRecord:
    return ExampleRecord(
        id=key,
        prompt_sha256=f"sha-{key}",
        scorer="exact_match@1",
        value=value,
        weight=weight,
        prompt=f"ask {key}",
        target=f"want {key}",
        answer=answer,
    )


def scores(*values: float, answer: str = "said") -> list[ExampleRecord]:
    return [record(f"e{index:03d}", value, answer=answer) for index, value in enumerate(values)]


def losses(*values: float) -> list[ExampleRecord]:
    return [record(f"e{index:03d}", value, weight=10.0, answer=None) for index, value in enumerate(values)]


def flipped(num_examples: int, *, lost: int, gained: int) -> tuple[list[ExampleRecord], list[ExampleRecord]]:
    """Right and wrong answers in turn before; so many of each flipped after."""
    before = [float(index % 2 == 0) for index in range(num_examples)]
    right, wrong = [n for n, value in enumerate(before) if value], [n for n, value in enumerate(before) if not value]
    turned = {*right[:lost], *wrong[:gained]}
    after = [1 - value if index in turned else value for index, value in enumerate(before)]
    return scores(*before), scores(*after)


def test_the_same_records_twice_show_no_change_and_lose_nothing() -> None:
    row = compare_task(QUIZ, scores(0, 1, 1), scores(0, 1, 1), identical=True)
    assert (row.difference, row.interval_low, row.interval_high, row.standard_error) == (0, 0, 0, 0)
    assert row.interval_method == "exact: same outputs"
    assert row.change == "no clear change"
    assert (row.lost, row.num_lost, row.num_gained, row.p_value, row.answer_agreement) == ((), 0, 0, 1.0, 1.0)


def test_the_same_scores_of_other_models_are_still_only_a_sample() -> None:
    # No flips: +-z^2 / (n + z^2) with n = 3 (Tango 1998).
    row = compare_task(QUIZ, scores(0, 1, 1), scores(0, 1, 1))
    assert row.interval_high == pytest.approx(Z_SQUARED / (3 + Z_SQUARED), abs=1e-9)
    assert row.interval_low == pytest.approx(-row.interval_high, abs=ROUNDING)
    assert (row.difference, row.p_value, row.change) == (0, 1.0, "no clear change")


def test_a_row_holds_the_description_and_the_counts() -> None:
    # 20 examples: 16 right before; 9 of them lost, 1 gained: 8 right after.  p = 2 * (1 + 10) / 2^10.
    row = compare_task(QUIZ, scores(*[1] * 16, *[0] * 4), scores(*[0] * 9, *[1] * 8, *[0] * 3))
    assert {key: value for key, value in asdict(row).items() if key in asdict(QUIZ)} == asdict(QUIZ)
    assert (row.num_examples, row.num_clusters, row.num_units, row.before, row.after) == (20, 20, 20.0, 0.8, 0.4)
    assert row.difference == pytest.approx(-0.4)
    assert (row.num_lost, row.num_gained, row.p_value, row.p_method) == (9, 1, 0.021484375, "exact McNemar")
    assert row.conditional_forgetting == 9 / 16
    assert row.interval_low < -0.4 < row.interval_high < 0
    assert row.change == "worsened"
    assert (row.verdict, row.adjusted_p) == (None, None)  # only a report can judge: the others are needed


EXACT_P = {
    (0, 0): 1.0,
    (1, 0): 1.0,
    (2, 0): 0.5,
    (5, 0): 0.0625,  # 2 / 2^5
    (0, 5): 0.0625,
    (6, 0): 0.03125,  # 2 / 2^6
    (4, 4): 1.0,
    (8, 2): 0.109375,  # 2 (1 + 10 + 45) / 2^10
    (2, 8): 0.109375,
    (10, 0): 0.001953125,  # 2 / 2^10
}
"""By (lost, gained): 2 * sum of binomial coefficients up to the fewer of k flips / 2^k, at most 1; by hand."""


@pytest.mark.parametrize(("lost", "gained"), EXACT_P)
@pytest.mark.parametrize("num_examples", [20, 50])
def test_flipping_so_many_answers_is_counted_and_has_its_exact_p(lost: int, gained: int, num_examples: int) -> None:
    before, after = flipped(num_examples, lost=lost, gained=gained)
    row = compare_task(QUIZ, before, after)
    assert (row.num_lost, row.num_gained) == (lost, gained)
    assert row.num_lost is not None
    assert row.num_lost / row.num_examples == lost / num_examples
    assert row.difference == pytest.approx((gained - lost) / num_examples, abs=ROUNDING)
    assert row.p_value == pytest.approx(EXACT_P[lost, gained], abs=ROUNDING)


@pytest.mark.parametrize(("direction", "change"), [(1, "worsened"), (-1, "improved")])
def test_a_loss_that_rises_has_worsened_and_one_that_falls_improved(direction: int, change: str) -> None:
    # Ten texts of 10 tokens move by 1.0 to 1.9 nats: mean 1.45 nats a text, 0.145 nats a token.
    moved = [40 + direction * (1 + 0.1 * index) for index in range(10)]
    row = compare_task(PROSE, losses(*[40] * 10), losses(*moved))
    assert (row.before, row.num_units) == (4.0, 100.0)
    assert row.difference == pytest.approx(direction * 0.145)
    assert row.change == change
    assert (row.num_lost, row.num_gained, row.lost, row.chance, row.retention) == (None, None, (), None, None)
    # All ten moved one way: 2 of the 2^10 assignments of signs are as extreme.
    assert (row.p_value, row.p_method) == (2 / 2**10, "sign-flip permutation")


def test_a_loss_has_no_flips_even_if_it_is_zero_or_one() -> None:
    row = compare_task(PROSE, losses(0, 1), losses(1, 0))
    assert (row.num_lost, row.p_method) == (None, "sign-flip permutation")


def test_a_score_that_rises_has_improved() -> None:
    row = compare_task(QUIZ, scores(*[0] * 20), scores(*[1] * 15, *[0] * 5))
    assert row.change == "improved"
    assert (row.num_lost, row.num_gained, row.conditional_forgetting) == (0, 15, None)


def test_an_interval_that_includes_zero_shows_no_clear_change() -> None:
    row = compare_task(QUIZ, scores(1, 0, 1, 0, 1, 0), scores(0, 1, 1, 0, 0, 0))
    assert row.interval_low < 0 < row.interval_high
    assert row.change == "no clear change"


def test_scores_between_zero_and_one_have_no_flips_but_do_have_losses() -> None:
    row = compare_task(QUIZ, scores(0.5, 0.9, 1.0), scores(0.4, 1.0, 1.0))
    assert (row.num_lost, row.num_gained, row.p_method) == (None, None, "sign-flip permutation")
    assert [lost.prompt for lost in row.lost] == ["ask e000"]


def test_lost_examples_come_largest_fall_first_then_by_id() -> None:
    # Falls: e000 0.25, e001 0.5, e002 none, e003 0.5, e004 0.75.
    before = scores(0.75, 1.0, 0.5, 0.75, 1.0, answer="old")
    after = scores(0.5, 0.5, 0.75, 0.25, 0.25, answer="new")
    row = compare_task(QUIZ, before, after)
    assert [lost.prompt for lost in row.lost] == ["ask e004", "ask e001", "ask e003", "ask e000"]
    assert row.lost[0] == LostExample(prompt="ask e004", target="want e004", answer_before="old", answer_after="new")


def test_at_most_two_hundred_lost_examples_are_kept_but_all_are_counted() -> None:
    row = compare_task(QUIZ, scores(*[1] * 230), scores(*[0] * 225, *[1] * 5))
    assert (len(row.lost), row.num_lost) == (200, 225)
    assert row.lost[-1].prompt == "ask e199"


def test_the_order_of_the_records_has_no_effect() -> None:
    before, after = scores(*[0.5] * 20), scores(*[(37 * index % 101) / 101 for index in range(20)])
    assert compare_task(QUIZ, before[::-1], after) == compare_task(QUIZ, before, after)


def test_answers_that_change_without_a_score_are_still_another_answer() -> None:
    row = compare_task(QUIZ, scores(0, 1, 1, 0, answer="old"), [*scores(0, 1, answer="old"), *scores(0, 1, 1, 0)[2:]])
    assert (row.num_lost, row.num_gained, row.answer_agreement) == (0, 0, 0.5)


def test_flips_of_the_base_in_other_batches_are_a_share_of_its_examples() -> None:
    before, after = flipped(8, lost=0, gained=0)
    null = [replace(one, value=1 - one.value) if one.id in ("e001", "e004") else one for one in before]
    assert compare_task(QUIZ, before, after, null=null).null_flip_rate == 0.25
    assert compare_task(QUIZ, before, after, null=before).null_flip_rate == 0.0
    assert compare_task(QUIZ, before, after).null_flip_rate is None
    with pytest.raises(JoinError, match="task null flips: 1 id"):
        compare_task(QUIZ, before, after, null=null[1:])


def test_chance_is_the_mean_of_one_in_so_many_candidates_and_retention_is_above_it() -> None:
    # Half of the questions have 2 candidates, half 4: chance 3/8.  60 of 64 right before, 40 after:
    # (40/64 - 3/8) / (60/64 - 3/8) = (40 - 24) / (60 - 24).
    nats = [(1.0,) * (2 if index < 32 else 4) for index in range(64)]
    before = [replace(one, candidate_nats=n) for one, n in zip(scores(*[1] * 60, *[0] * 4), nats, strict=True)]
    after = [replace(one, candidate_nats=n) for one, n in zip(scores(*[1] * 40, *[0] * 24), nats, strict=True)]
    row = compare_task(CHOICE, before, after)
    assert (row.chance, row.retention) == (0.375, pytest.approx(16 / 36, abs=ROUNDING))
    guessing = [replace(one, value=float(index % 8 < 3)) for index, one in enumerate(before)]
    assert compare_task(CHOICE, guessing, after).retention is None


def test_what_was_right_before_is_counted_exactly() -> None:
    # 29 / 100 * 100 is 28.99... in binary, and rounded down 28.  Wilson's low end of 29 in 100 is 0.2101, of 28 it is
    # 0.2014: above a chance of 0.205 only if all are counted.
    candidates = [(1.0,) * (4 if index < 10 else 5) for index in range(100)]
    right = scores(*[1] * 29, *[0] * 71)
    before = [replace(one, candidate_nats=nats) for one, nats in zip(right, candidates, strict=True)]
    row = compare_task(CHOICE, before, before)
    assert row.chance == pytest.approx(0.205, abs=ROUNDING)
    assert row.retention == pytest.approx(1.0, abs=ROUNDING)


def test_unreadable_answers_are_counted_on_both_sides_where_answers_are_free() -> None:
    before, after = flipped(6, lost=0, gained=0)
    after = [replace(one, is_parsed=one.id > "e001") for one in after]
    row = compare_task(QUIZ, before, after)
    assert (row.num_unparsed_before, row.num_unparsed_after) == (0, 2)
    row = compare_task(CHOICE, before, after)
    assert (row.num_unparsed_before, row.num_unparsed_after) == (None, None)


def test_bits_per_byte_and_divergence_are_of_all_texts_together() -> None:
    # 40 + 60 nats on 20 + 30 bytes: 2 nats a byte.  KL 1.5 nats on the 10 tokens of the one text that has it.
    before = [replace(one, num_bytes=n) for one, n in zip(losses(40, 60), (20, 30), strict=True)]
    after = [replace(one, value=one.value / 2) for one in before]
    after[1] = replace(after[1], kl_nats=1.5, num_agreeing_tokens=8)
    row = compare_task(PROSE, before, after)
    assert row.bits_per_byte_before == pytest.approx(2 / math.log(2), abs=ROUNDING)
    assert row.bits_per_byte_after == pytest.approx(1 / math.log(2), abs=ROUNDING)
    assert (row.kl_nats_per_token, row.top1_agreement) == (0.15, 0.8)
    bare = compare_task(PROSE, losses(40, 60), losses(41, 60))
    assert (bare.bits_per_byte_before, bare.kl_nats_per_token, bare.top1_agreement) == (None, None, None)


def test_questions_on_one_passage_are_one_unit_of_chance() -> None:
    # Five clusters of four, in each of which all four are lost: 2 of 2^5 signs, where single examples gave 2 / 2^20.
    before = [replace(one, cluster=f"passage {index // 4}") for index, one in enumerate(scores(*[1] * 20))]
    after = [replace(one, value=0.0) for one in before]
    row = compare_task(QUIZ, before, after)
    assert (row.num_examples, row.num_clusters, row.num_lost) == (20, 5, 20)
    assert (row.p_value, row.p_method) == (2 / 2**5, "sign-flip permutation of clusters")
    alone = [replace(one, cluster=None if index >= 16 else one.cluster) for index, one in enumerate(before)]
    assert compare_task(QUIZ, alone, [replace(one, value=0.0) for one in alone]).num_clusters == 4 + 4


def refusal(before: list[ExampleRecord], after: list[ExampleRecord], *, task: TaskDescription = QUIZ) -> str:
    with pytest.raises(JoinError) as caught:
        compare_task(task, before, after)
    message = str(caught.value)
    assert message.startswith(f"task {task.name}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("changed", [{"value": 1.5}, {"value": -0.5}, {"weight": 3.0}])
def test_a_score_outside_its_range_is_refused(changed: dict[str, float]) -> None:
    wrong = [scores(0, 1)[0], replace(scores(0, 1)[1], **changed)]
    assert "1 id(s) are not scores in [0, 1] with weight 1: 'e001'" in refusal(wrong, wrong)

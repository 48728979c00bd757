"""Flips, chance and shares: counts known beforehand, and arithmetic worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from trainer.config.errors import InputError
from trainer.evaluation.flips import binomial_interval, chance_normalised, count_flips, retention

ROUNDING = 1e-12
NUM_EXAMPLES = 40

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)


@pytest.mark.parametrize("num_flipped", [0, 1, 7, NUM_EXAMPLES])
def test_flipping_k_right_answers_gives_a_negative_flip_rate_of_k_in_n(num_flipped: int) -> None:
    before = [1] * NUM_EXAMPLES
    after = [0] * num_flipped + [1] * (NUM_EXAMPLES - num_flipped)
    flips = count_flips(before, after)
    assert (flips.num_lost, flips.num_gained) == (num_flipped, 0)
    assert flips.negative_flip_rate == num_flipped / NUM_EXAMPLES
    assert flips.positive_flip_rate == 0
    back = count_flips(after, before)
    assert (back.num_lost, back.positive_flip_rate) == (0, num_flipped / NUM_EXAMPLES)


def test_conditional_forgetting_is_of_what_was_right() -> None:
    # 4 right before, 1 of them wrong now; 6 wrong before, 2 of them right now.
    flips = count_flips([1] * 4 + [0] * 6, [0, 1, 1, 1, 1, 1, 0, 0, 0, 0])
    assert (flips.num_examples, flips.num_lost, flips.num_gained) == (10, 1, 2)
    assert (flips.negative_flip_rate, flips.positive_flip_rate) == (0.1, 0.2)
    assert flips.conditional_forgetting == 0.25


def test_nothing_right_before_leaves_nothing_to_forget() -> None:
    assert count_flips([0, 0], [1, 0]).conditional_forgetting is None


def test_answers_agree_by_their_text_right_or_wrong() -> None:
    # Wrong both times: the same wrong answer agrees, another wrong answer does not.
    flips = count_flips([0, 0, 1, 1], [0, 0, 1, 1], answers_before=["a", "b", "c", "d"], answers_after=list("axcd"))
    assert flips.answer_agreement == 0.75
    assert flips.num_lost == flips.num_gained == 0


def test_agreement_is_not_known_where_an_answer_is_missing() -> None:
    assert count_flips([1, 1], [1, 1], answers_before=["a", None], answers_after=["a", "b"]).answer_agreement is None
    assert count_flips([1, 1], [1, 1], answers_before=["a", "b"], answers_after=["a", None]).answer_agreement is None
    assert count_flips([1, 1], [1, 1], answers_before=["a", "b"]).answer_agreement is None
    assert count_flips([1, 1], [1, 1]).answer_agreement is None


@given(PAIRS)
def test_the_change_of_accuracy_is_what_was_gained_less_what_was_lost(pairs: list[tuple[int, int]]) -> None:
    before, after = [old for old, _ in pairs], [new for _, new in pairs]
    flips = count_flips(before, after)
    change = (sum(after) - sum(before)) / len(pairs)
    assert flips.positive_flip_rate - flips.negative_flip_rate == pytest.approx(change, abs=ROUNDING)


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ([], [], "at least one"),
        ([1], [1, 0], "1, 2 examples"),
        ([1, 0.5], [1, 0], "such as 0.5"),
        ([1, 0], [1, math.nan], "such as nan"),
    ],
)
def test_what_cannot_flip_is_refused_in_one_line(before: list[float], after: list[float], part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        count_flips(before, after)
    assert "\n" not in str(caught.value)


def test_answers_of_other_examples_are_refused() -> None:
    with pytest.raises(InputError, match="2, 2, 2, 1 examples"):
        count_flips([1, 0], [1, 0], answers_before=["a", "b"], answers_after=["a"])


def test_a_fall_towards_chance_is_a_larger_share_of_the_ability() -> None:
    # Four options: (0.60 - 0.25) / 0.75 = 0.4667 and (0.45 - 0.25) / 0.75 = 0.2667; kept 0.20 / 0.35 = 57 %.
    assert chance_normalised(0.60, 0.25) == pytest.approx(0.35 / 0.75, abs=ROUNDING)
    kept = retention(0.60, 0.45, chance=0.25, before_interval_low=0.5)
    assert kept == pytest.approx(0.20 / 0.35, abs=ROUNDING)


def test_chance_is_zero_and_all_right_is_one() -> None:
    assert chance_normalised(0.25, 0.25) == 0
    assert chance_normalised(1.0, 0.25) == 1
    assert chance_normalised(0.3, 0.0) == 0.3


def test_retention_is_not_known_of_a_base_at_chance() -> None:
    assert retention(0.30, 0.10, chance=0.25, before_interval_low=0.25) is None
    assert retention(0.30, 0.10, chance=0.25, before_interval_low=0.2500001) is not None
    low, _ = binomial_interval(12, 40)  # 30 % of 40 is not shown to be above 25 %
    assert retention(0.30, 0.30, chance=0.25, before_interval_low=low) is None


def test_an_ability_worse_than_guessing_has_a_negative_retention() -> None:
    assert retention(0.75, 0.0, chance=0.5, before_interval_low=0.6) == -2


@pytest.mark.parametrize("chance", [-0.1, 1.0, math.nan])
def test_a_chance_that_is_no_share_is_refused(chance: float) -> None:
    with pytest.raises(InputError, match="1/k"):
        chance_normalised(0.5, chance)


def test_scores_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        chance_normalised(math.nan, 0.5)
    with pytest.raises(InputError, match="above the score"):
        retention(0.3, 0.3, chance=0.25, before_interval_low=0.4)


@pytest.mark.parametrize(("successes", "num_examples"), [(0, 10), (10, 10), (1, 1), (37, 120), (119, 120)])
def test_the_interval_of_a_share_is_wilsons(successes: int, num_examples: int) -> None:
    reference = binomtest(successes, num_examples).proportion_ci(0.95, method="wilson")
    assert binomial_interval(successes, num_examples) == pytest.approx((reference.low, reference.high), abs=ROUNDING)


def test_the_ends_of_the_interval_are_exact_at_none_and_all() -> None:
    assert {binomial_interval(0, num_examples)[0] for num_examples in range(1, 100)} == {0.0}
    assert {binomial_interval(num_examples, num_examples)[1] for num_examples in range(1, 100)} == {1.0}


@pytest.mark.parametrize(("successes", "num_examples"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, num_examples: int) -> None:
    with pytest.raises(InputError, match=f"{successes} of {num_examples}"):
        binomial_interval(successes, num_examples)


def test_a_confidence_outside_its_range_is_refused() -> None:
    with pytest.raises(InputError, match="confidence"):
        binomial_interval(1, 2, confidence=95)

"""Intervals and p values: worked by hand where possible, calibrated by simulation where not."""

import math

import numpy as np
import pytest

from trainer.evaluation.statistics import (
    BCA,
    EXACT_ALIKE,
    EXACT_UNCHANGED,
    NORMAL,
    PERCENTILE,
    mcnemar_exact,
    paired_difference,
)

ROUNDING = 1e-12
Z_95 = 1.959963984540054
"""0.975 quantile of the standard normal."""


def test_a_loss_per_token_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    # 2 nats over 1 token and 3 nats over 9 tokens: 5 / 10, where a mean of ratios would say (2 + 1/3) / 2.
    # After: (1 + 5) / 10.
    result = paired_difference([2.0, 3.0], [1.0, 5.0], weights=[1.0, 9.0])
    assert (result.num_examples, result.before, result.after) == (2, 0.5, 0.6)
    assert result.difference == pytest.approx(0.1, abs=ROUNDING)


def test_the_normal_interval_is_the_delta_method_of_a_ratio() -> None:
    # 150 examples with (d, w) = (1, 1) and 150 with (1, 3): D = 300 / 600 = 0.5.
    # r = d - D w = 0.5 and -0.5: sum r^2 = 300 * 0.25 = 75.  SE = sqrt(300 / 299 * 75) / 600.
    result = paired_difference([0.0] * 300, [1.0] * 300, weights=[1.0] * 150 + [3.0] * 150)
    half_width = Z_95 * math.sqrt(300 / 299 * 75) / 600
    assert result.method == NORMAL
    assert result.difference == 0.5
    assert result.interval_low == pytest.approx(0.5 - half_width, abs=ROUNDING)
    assert result.interval_high == pytest.approx(0.5 + half_width, abs=ROUNDING)


def test_the_normal_interval_of_flips_has_the_binary_standard_error() -> None:
    # n = 400, 40 lost and 20 gained: Delta = -0.05.  SE^2 = ((40 + 20) / 400 - 0.05^2) / 400 * 400 / 399.
    before = [1.0] * 40 + [0.0] * 20 + [1.0] * 340
    after = [0.0] * 40 + [1.0] * 20 + [1.0] * 340
    result = paired_difference(before, after)
    half_width = Z_95 * math.sqrt((60 / 400 - 0.05**2) / 399)
    assert result.difference == pytest.approx(-0.05, abs=ROUNDING)
    assert result.interval_high - result.difference == pytest.approx(half_width, abs=ROUNDING)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    before, after = [0.0] * 300, [1.0, 0.0, 0.0] * 100
    narrow = paired_difference(before, after, confidence=0.5)
    wide = paired_difference(before, after, confidence=0.99)
    assert wide.interval_low < narrow.interval_low < narrow.interval_high < wide.interval_high


def test_the_interval_turns_normal_at_300_examples() -> None:
    after = [1.0] + [0.0] * 299
    assert paired_difference([0.0] * 300, after).method == NORMAL
    assert paired_difference([0.0] * 299, after[:299], num_draws=100).method == BCA


def test_the_normal_interval_rejects_a_true_null_about_five_times_in_a_hundred() -> None:
    # 1,000 draws at 5 %: standard error of the rate sqrt(0.05 * 0.95 / 1000) = 0.007, so 0.03 to 0.07 is +-2.9 of them.
    random = np.random.default_rng(1)
    num_rejected = 0
    for _ in range(1_000):
        tokens = random.integers(5, 60, size=300).astype(float)
        before = tokens * random.normal(3.0, 0.5, size=300)
        after = before + np.sqrt(tokens) * random.normal(0.0, 1.0, size=300)
        result = paired_difference(before.tolist(), after.tolist(), weights=tokens.tolist())
        num_rejected += not result.interval_low <= 0 <= result.interval_high
    assert 0.03 < num_rejected / 1_000 < 0.07


def test_the_bootstrap_interval_covers_the_true_difference_at_100_examples() -> None:
    # True ratio 0.25. 300 draws at 95 %: standard error of the coverage 0.013, so 0.90 is 4 of them below; few
    # bootstrap draws and a skewed weight cost one or two points.
    random = np.random.default_rng(2)
    num_covered = 0
    for seed in range(300):
        tokens = np.round(random.lognormal(3.0, 0.6, size=100)) + 1
        after = 0.25 * tokens + tokens * (random.exponential(1.0, size=100) - 1)
        result = paired_difference([0.0] * 100, after.tolist(), weights=tokens.tolist(), seed=seed, num_draws=400)
        num_covered += result.interval_low <= 0.25 <= result.interval_high
    assert 0.90 < num_covered / 300 < 0.985


def test_the_bootstrap_agrees_with_the_normal_interval_where_both_hold() -> None:
    # Longer texts change more a token, so a mean of ratios would lie elsewhere. The standard error of the ratio of
    # sums is worked here (r = d - D w); the bootstrap may differ by a few percent of it.
    random = np.random.default_rng(3)
    tokens = random.integers(10, 30, size=299).astype(float)
    change = 0.1 * tokens**2 + tokens * random.normal(size=299)
    result = paired_difference([0.0] * 299, change.tolist(), weights=tokens.tolist())
    ratio = change.sum() / tokens.sum()
    standard_error = math.sqrt(299) * (change - ratio * tokens).std(ddof=1) / tokens.sum()
    assert result.method == BCA
    assert result.interval_low == pytest.approx(ratio - Z_95 * standard_error, abs=0.15 * standard_error)
    assert result.interval_high == pytest.approx(ratio + Z_95 * standard_error, abs=0.15 * standard_error)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    before, after = [0.0] * 9, [0.3, 1.1, 2.7, 0.2, 5.9, 1.4, 0.8, 2.2, 7.1]
    first = paired_difference(before, after, seed=4)
    assert paired_difference(before, after, seed=4) == first
    assert paired_difference(before, after, seed=5).interval_low != first.interval_low


@pytest.mark.parametrize("num_examples", [2, 50, 300])
def test_identical_scores_give_an_interval_of_width_zero_that_says_why(num_examples: int) -> None:
    scores = [0.1 * index for index in range(num_examples)]
    result = paired_difference(scores, scores, weights=[1.0 + index for index in range(num_examples)])
    assert (result.difference, result.interval_low, result.interval_high) == (0.0, 0.0, 0.0)
    assert result.method == EXACT_UNCHANGED


@pytest.mark.parametrize("num_examples", [3, 300])
def test_differences_in_proportion_to_the_weights_are_exact_too(num_examples: int) -> None:
    # 0.1 is not a binary fraction, so d - D w is rounding error, not zero: it must not count as variance.
    weights = [float(1 + index % 7) for index in range(num_examples)]
    result = paired_difference([0.0] * num_examples, [0.1 * weight for weight in weights], weights=weights)
    assert result.interval_low == result.interval_high == pytest.approx(0.1, abs=ROUNDING)
    assert result.method == EXACT_ALIKE


def test_one_example_that_moved_by_rounding_is_not_an_exact_change() -> None:
    before = [5.1] * 300
    result = paired_difference(before, [math.nextafter(5.1, 6.0), *before[1:]])
    assert result.method == NORMAL
    assert result.interval_low < 0 < result.interval_high


@pytest.mark.parametrize("num_examples", [2, 3, 20, 299])
def test_one_flip_among_many_gives_a_finite_interval_that_reaches_zero(num_examples: int) -> None:
    # A draw misses the one flip with probability (1 - 1/n)^n, at least 0.25: zero is well inside 95 %.
    result = paired_difference([1.0] * num_examples, [0.0] + [1.0] * (num_examples - 1))
    assert math.isfinite(result.interval_low)
    assert -1 <= result.interval_low < result.difference < result.interval_high == 0


def test_where_bca_is_undefined_the_percentile_interval_is_used_and_named() -> None:
    # The acceleration of BCa is a quotient of cubes: of differences of 1e-150 they underflow to 0 / 0.
    result = paired_difference([0.0] * 10, [1e-150, *[0.0] * 9], num_draws=500)
    assert result.method == PERCENTILE
    assert result.interval_low == 0
    # Of 10 draws with 1/10 each, 3 to 4 hits are the 97.5th percentile (P(at most 3) = 0.987, at most 2 = 0.930).
    assert 2e-151 <= result.interval_high <= 4e-151


@pytest.mark.parametrize(
    ("before", "after", "weights", "confidence", "message"),
    [
        ([1.0], [1.0], None, 0.95, "1 example"),
        ([], [], None, 0.95, "0 example"),
        ([1.0, 2.0], [1.0], None, 0.95, "one length"),
        ([1.0, 2.0], [1.0, 2.0], [1.0], 0.95, "one length"),
        ([1.0, math.nan], [1.0, 2.0], None, 0.95, "not finite"),
        ([1.0, 2.0], [1.0, math.inf], None, 0.95, "not finite"),
        ([1.0, 2.0], [1.0, 2.0], [1.0, 0.0], 0.95, "above 0"),
        ([1.0, 2.0], [1.0, 2.0], None, 95.0, "confidence"),
    ],
)
def test_what_no_interval_can_be_made_of_is_refused(
    before: list[float], after: list[float], weights: list[float] | None, confidence: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(before, after, weights=weights, confidence=confidence)


@pytest.mark.parametrize(
    ("num_lost", "num_gained", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (6, 0, 0.03125),  # 2 * 1/64: the fewest one-sided flips below 0.05
        (9, 1, 0.021484375),  # 2 * (1 + 10) / 1024
        (1, 9, 0.021484375),
        (5, 5, 1.0),  # 2 * 638 / 1024 is above 1
        (3, 12, 0.03515625),  # 2 * (1 + 15 + 105 + 455) / 32768
    ],
)
def test_mcnemar_matches_the_binomial_table(num_lost: int, num_gained: int, expected: float) -> None:
    assert mcnemar_exact(num_lost, num_gained) == pytest.approx(expected, abs=ROUNDING)


def test_mcnemar_refuses_a_negative_count() -> None:
    with pytest.raises(ValueError, match="lost -1"):
        mcnemar_exact(-1, 3)

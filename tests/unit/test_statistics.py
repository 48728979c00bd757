"""Intervals, worked by hand or a slow second way; how well they are calibrated: test_calibration."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from trainer.evaluation.statistics import (
    CLUSTERED,
    CLUSTERED_FLIPS,
    EXACT_ALIKE,
    EXACT_CLUSTERS_ALIKE,
    EXACT_IDENTICAL,
    EXACT_UNCHANGED,
    LINEARISED,
    SCORE,
    SCORE_OF_CLUSTERS,
    paired_difference,
    score_interval,
)

ROUNDING = 1e-12
Z_95 = 1.959963984540054
"""0.975 quantile of the standard normal."""
T_95_299 = 1.9679296691
"""0.975 quantile of Student's t with 299 degrees of freedom."""
T_95_3 = 3.1824463053
"""0.975 quantile of Student's t with 3 degrees of freedom."""


def test_a_loss_per_token_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    # 2 nats over 1 token and 3 nats over 9 tokens: 5 / 10, where a mean of ratios would say (2 + 1/3) / 2.
    # After: (1 + 5) / 10.
    result = paired_difference([2.0, 3.0], [1.0, 5.0], weights=[1.0, 9.0])
    assert (result.num_examples, result.before, result.after) == (2, 0.5, 0.6)
    assert result.difference == pytest.approx(0.1, abs=ROUNDING)


def test_the_interval_of_symmetric_residuals_is_students_with_the_delta_method() -> None:
    # 150 examples with (d, w) = (1, 1) and 150 with (1, 3): D = 300 / 600 = 0.5.
    # r = d - D w = 0.5 and -0.5, so not skewed: sum r^2 = 300 * 0.25 = 75.  SE = sqrt(300 / 299 * 75) / 600.
    result = paired_difference([0.0] * 300, [1.0] * 300, weights=[1.0] * 150 + [3.0] * 150)
    error = math.sqrt(300 / 299 * 75) / 600
    assert (result.method, result.num_clusters, result.difference) == (LINEARISED, 300, 0.5)
    assert result.standard_error == pytest.approx(error, abs=ROUNDING)
    assert result.interval_low == pytest.approx(0.5 - T_95_299 * error, abs=1e-10)
    assert result.interval_high == pytest.approx(0.5 + T_95_299 * error, abs=1e-10)


def test_a_long_tail_moves_the_end_on_its_side_outwards_and_leaves_the_other() -> None:
    # d = 0, 0, 0, 4: D = 1, r = -1, -1, -1, 3: sum r^2 = 12, SE = sqrt(4 / 3 * 12) / 4 = 1.
    # Skewness: (24 / 4) / (12 / 4)^1.5 = 6 / 5.196 = 1.1547, so a = 1.1547 / 2 = 0.57735, a / 6 = 0.096225.
    # Hall at -t: 3 / a ((1 + a (-3.182446 - 0.096225))^(1/3) - 1) = 5.196152 (cbrt(-0.892941) - 1) = -10.1998.
    result = paired_difference([0.0] * 4, [0.0, 0.0, 0.0, 4.0])
    assert result.standard_error == pytest.approx(1, abs=ROUNDING)
    assert result.interval_low == pytest.approx(1 - T_95_3, abs=1e-9)
    assert result.interval_high == pytest.approx(1 + 10.1998, abs=1e-4)
    mirrored = paired_difference([0.0, 0.0, 0.0, 4.0], [0.0] * 4)
    assert mirrored.interval_low == pytest.approx(-result.interval_high, abs=ROUNDING)
    assert mirrored.interval_high == pytest.approx(-result.interval_low, abs=ROUNDING)


def test_changes_too_small_to_cube_still_have_an_interval() -> None:
    small, large = (paired_difference([0.0] * 4, [0.0, 0.0, 0.0, 4.0 * unit]) for unit in (1e-150, 1.0))
    assert small.interval_low == pytest.approx(large.interval_low * 1e-150, rel=1e-9)
    assert small.interval_high == pytest.approx(large.interval_high * 1e-150, rel=1e-9)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    for binary in (True, False):
        before, after = [0.0] * 300, [1.0, 0.0, 0.0] * 100
        narrow = paired_difference(before, after, binary=binary, confidence=0.5)
        wide = paired_difference(before, after, binary=binary, confidence=0.99)
        assert wide.interval_low < narrow.interval_low < narrow.interval_high < wide.interval_high


@pytest.mark.parametrize("num_examples", [2, 100, 1000])
def test_no_flips_leave_what_a_sample_of_this_size_can_hide(num_examples: int) -> None:
    # With no flips the score test reads n D = z sqrt(n D (1 - D)), so D = z^2 / (n + z^2): 0.037 at 100.
    bound = Z_95**2 / (num_examples + Z_95**2)
    result = paired_difference([1.0] * num_examples, [1.0] * num_examples, binary=True)
    assert (result.difference, result.method) == (0.0, SCORE)
    assert (result.interval_low, result.interval_high) == pytest.approx((-bound, bound), abs=ROUNDING)
    assert result.standard_error == pytest.approx(bound / Z_95, abs=ROUNDING)


def test_the_score_interval_is_the_published_one() -> None:
    # Airway hyper-responsiveness before and after stem cell transplantation: 1 and 7 flips of 21 children, with
    # Tango's interval from -0.517 to -0.026 (Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014)).
    assert score_interval(7, 1, num_pairs=21) == pytest.approx((-0.517, -0.026), abs=0.0005)


def most_likely_share_lost(num_lost: int, num_gained: int, *, num_pairs: int, difference: float) -> float:
    """The share lost that makes the counts most likely if gained - lost is `difference`, by search."""
    lowest, highest = max(0.0, -difference), (1 - difference) / 2

    def minus_log_likelihood(share: float) -> float:
        kept = num_pairs - num_lost - num_gained
        terms = ((num_lost, share), (num_gained, share + difference), (kept, 1 - 2 * share - difference))
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in terms if count)

    return float(minimize_scalar(minus_log_likelihood, bounds=(lowest, highest), options={"xatol": 1e-12}).x)


@pytest.mark.parametrize(
    ("num_lost", "num_gained", "num_pairs"), [(7, 1, 21), (40, 20, 160), (3, 1, 1000), (90, 5, 100)]
)
def test_the_ends_of_the_score_interval_are_where_the_score_is_the_quantile(
    num_lost: int, num_gained: int, num_pairs: int
) -> None:
    for end in score_interval(num_lost, num_gained, num_pairs=num_pairs):
        share = most_likely_share_lost(num_lost, num_gained, num_pairs=num_pairs, difference=end)
        variance = num_pairs * (2 * share + end * (1 - end))
        assert abs(num_gained - num_lost - num_pairs * end) / math.sqrt(variance) == pytest.approx(Z_95, abs=1e-5)


def test_losing_and_gaining_are_mirror_images_and_all_lost_ends_at_minus_one() -> None:
    low, high = score_interval(12, 3, num_pairs=50)
    assert score_interval(3, 12, num_pairs=50) == pytest.approx((-high, -low), abs=ROUNDING)
    # All lost: the share lost is as large as D allows, (1 - D) / 2, and the rest gained. So the score test reads
    # n (1 + D) = z sqrt(n (1 - D) (1 + D)), and 1 + D = 2 z^2 / (n + z^2).
    result = paired_difference([1.0] * 50, [0.0] * 50, binary=True)
    assert result.interval_low == pytest.approx(-1, abs=ROUNDING)
    assert result.interval_high == pytest.approx(-1 + 2 * Z_95**2 / (50 + Z_95**2), abs=ROUNDING)


def test_binary_scores_have_the_score_interval_of_their_flips() -> None:
    before = [1.0] * 40 + [0.0] * 20 + [1.0] * 340
    after = [0.0] * 40 + [1.0] * 20 + [1.0] * 340
    result = paired_difference(before, after, binary=True)
    low, high = score_interval(40, 20, num_pairs=400)
    assert (result.interval_low, result.interval_high, result.method) == (low, high, SCORE)
    assert result.difference == pytest.approx(-0.05, abs=ROUNDING)
    assert result.standard_error == pytest.approx((high - low) / (2 * Z_95), abs=ROUNDING)


def test_clusters_count_as_one_each() -> None:
    # Sizes 1, 1, 2, 2 with d = 1, 3, (0, 0), (2, 6): D = 12 / 6 = 2, r = -1, 1, -4, 4: sum r^2 = 34, not skewed.
    # SE = sqrt(4 / 3 * 34) / 6.
    result = paired_difference([0.0] * 6, [1.0, 3.0, 0.0, 0.0, 2.0, 6.0], clusters=["a", "b", "c", "c", "d", "d"])
    error = math.sqrt(4 / 3 * 34) / 6
    assert (result.num_examples, result.num_clusters, result.method) == (6, 4, CLUSTERED)
    assert result.standard_error == pytest.approx(error, abs=ROUNDING)
    assert result.interval_low == pytest.approx(2 - T_95_3 * error, abs=1e-9)
    assert result.interval_high == pytest.approx(2 + T_95_3 * error, abs=1e-9)


def test_a_cluster_of_weighted_examples_is_as_good_as_one_example_with_their_sums() -> None:
    random = np.random.default_rng(3)
    tokens, change = random.integers(5, 50, 60).astype(float), random.exponential(1.0, 60)
    clusters = [f"passage {number % 20}" for number in range(60)]
    split = paired_difference([0.0] * 60, (tokens * change).tolist(), weights=tokens.tolist(), clusters=clusters)
    sums = (tokens * change).reshape(3, 20).sum(axis=0), tokens.reshape(3, 20).sum(axis=0)
    whole = paired_difference([0.0] * 20, sums[0].tolist(), weights=sums[1].tolist())
    assert split.standard_error == pytest.approx(whole.standard_error, abs=ROUNDING)
    assert split.interval_low == pytest.approx(whole.interval_low, abs=ROUNDING)
    assert split.interval_high == pytest.approx(whole.interval_high, abs=ROUNDING)


@pytest.mark.parametrize("binary", [True, False])
def test_clusters_of_one_example_each_change_nothing(binary: bool) -> None:
    before, after = [0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 1.0]
    assert paired_difference(before, after, binary=binary, clusters=list("abcde")) == paired_difference(
        before, after, binary=binary
    )


def test_binary_clusters_have_the_wider_of_t_and_the_score_interval_of_their_effective_number() -> None:
    # One of 10 clusters of 10 is lost: D = -0.1, r = -9 once and 1 nine times: SE = sqrt(10 / 9 * 90) / 100 = 0.1.
    # Independent examples would have 0.1 * 0.9 / 100 = 0.0009: as good as 100 * 0.0009 / 0.1^2 = 9 examples.
    clusters = [str(index // 10) for index in range(100)]
    before, after = [1.0] * 100, [0.0] * 10 + [1.0] * 90
    result = paired_difference(before, after, clusters=clusters, binary=True)
    score, t = score_interval(0.9, 0, num_pairs=9), paired_difference(before, after, clusters=clusters)
    assert (result.method, result.standard_error) == (CLUSTERED_FLIPS, t.standard_error)
    assert result.standard_error == pytest.approx(0.1, abs=ROUNDING)
    assert result.interval_low == pytest.approx(min(score[0], t.interval_low), abs=1e-9)
    assert result.interval_high == pytest.approx(max(score[1], t.interval_high), abs=1e-9)
    assert score[1] > t.interval_high > score[0] > t.interval_low


def test_binary_clusters_of_which_none_stands_out_count_once_each() -> None:
    # No flips in 10 clusters of 10: as little is known as from 10 examples, if whole clusters flip together.
    clusters = [str(index // 10) for index in range(100)]
    unflipped = paired_difference([1.0] * 100, [1.0] * 100, clusters=clusters, binary=True)
    bound = Z_95**2 / (10 + Z_95**2)
    assert (unflipped.interval_low, unflipped.interval_high) == pytest.approx((-bound, bound), abs=ROUNDING)
    assert unflipped.method == SCORE_OF_CLUSTERS
    # One lost in each cluster: 1 lost of 10.
    alike = paired_difference([1.0] * 100, ([0.0] + [1.0] * 9) * 10, clusters=clusters, binary=True)
    assert (alike.interval_low, alike.interval_high) == pytest.approx(score_interval(1, 0, num_pairs=10), abs=ROUNDING)


@pytest.mark.parametrize("binary", [True, False])
def test_identical_outputs_are_exact_and_only_the_caller_can_know_them(binary: bool) -> None:
    scores = [1.0, 0.0, 1.0, 1.0]
    result = paired_difference(scores, scores, binary=binary, identical=True)
    assert (result.difference, result.interval_low, result.interval_high, result.standard_error) == (0, 0, 0, 0)
    assert result.method == EXACT_IDENTICAL
    assert paired_difference(scores, scores, binary=binary).method != EXACT_IDENTICAL
    with pytest.raises(ValueError, match="identical outputs with different scores"):
        paired_difference(scores, [1.0, 0.0, 1.0, 0.0], binary=binary, identical=True)


@pytest.mark.parametrize("num_examples", [2, 50, 300])
def test_unchanged_real_values_give_an_interval_of_width_zero_that_says_why(num_examples: int) -> None:
    scores = [0.1 * index for index in range(num_examples)]
    result = paired_difference(scores, scores, weights=[1.0 + index for index in range(num_examples)])
    assert (result.difference, result.interval_low, result.interval_high) == (0.0, 0.0, 0.0)
    assert (result.method, result.standard_error) == (EXACT_UNCHANGED, 0.0)


@pytest.mark.parametrize("num_examples", [3, 300])
def test_differences_in_proportion_to_the_weights_are_exact_too(num_examples: int) -> None:
    # 0.1 is not a binary fraction, so d - D w is rounding error, not zero: it must not count as variance.
    weights = [float(1 + index % 7) for index in range(num_examples)]
    after = [0.1 * weight for weight in weights]
    result = paired_difference([0.0] * num_examples, after, weights=weights)
    assert result.interval_low == result.interval_high == pytest.approx(0.1, abs=ROUNDING)
    assert result.method == EXACT_ALIKE
    clusters = [str(index % 2) for index in range(num_examples)]
    clustered = paired_difference([0.0] * num_examples, after, weights=weights, clusters=clusters)
    assert (clustered.method, clustered.standard_error) == (EXACT_CLUSTERS_ALIKE, 0.0)


def test_one_example_that_moved_by_rounding_is_not_an_exact_change() -> None:
    before = [5.1] * 300
    result = paired_difference(before, [math.nextafter(5.1, 6.0), *before[1:]])
    assert result.method == LINEARISED
    assert result.interval_low < 0 < result.interval_high


@pytest.mark.parametrize("num_examples", [2, 3, 20, 299, 1000])
@pytest.mark.parametrize("binary", [True, False])
def test_one_flip_among_many_gives_a_finite_interval_on_both_sides_of_zero(num_examples: int, binary: bool) -> None:
    result = paired_difference([1.0] * num_examples, [0.0] + [1.0] * (num_examples - 1), binary=binary)
    assert math.isfinite(result.interval_low)
    assert result.interval_low < result.difference < 0 < result.interval_high < math.inf


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
    ("after", "weights", "clusters", "binary", "message"),
    [
        ([1.0, 0.0, 1.0], None, ["a", "b"], False, "clusters name 2 examples, there are 3"),
        ([1.0, 0.0, 1.0], None, ["a", "a", "a"], False, "1 cluster"),
        ([1.0, 0.0, 1.0], None, ["a", "a", "a"], True, "1 cluster"),
        ([1.0, 0.5, 1.0], None, None, True, "0 or 1"),
        ([1.0, 0.0, 1.0], [1.0, 2.0, 1.0], None, True, "weight 1"),
    ],
)
def test_clusters_and_binary_values_must_fit(
    after: list[float], weights: list[float] | None, clusters: Sequence[str] | None, binary: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference([1.0, 0.0, 0.0], after, weights=weights, clusters=clusters, binary=binary)


@pytest.mark.parametrize(("num_lost", "num_gained", "num_pairs"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_are_none_are_refused(num_lost: int, num_gained: int, num_pairs: int) -> None:
    with pytest.raises(ValueError, match="not counts of flips"):
        score_interval(num_lost, num_gained, num_pairs=num_pairs)

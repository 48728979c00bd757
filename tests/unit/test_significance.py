"""P values against tables and full enumeration, and their adjustment for several tests."""

import itertools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from trainer.evaluation.significance import benjamini_hochberg, holm, mcnemar_mid_p, sign_flip_p
from trainer.evaluation.statistics import mcnemar_exact

ROUNDING = 1e-12


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


@pytest.mark.parametrize(
    ("num_lost", "num_gained", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 0.5),  # 2 * 1/2 - 1/2
        (6, 0, 0.015625),  # 2/64 - 1/64
        (1, 7, 0.0390625),  # 2 * (1 + 8) / 256 - 8/256
        (7, 1, 0.0390625),
        (5, 5, 1.0),  # 2 * 638/1024 - 252/1024
    ],
)
def test_the_mid_p_counts_the_observed_split_by_half(num_lost: int, num_gained: int, expected: float) -> None:
    assert mcnemar_mid_p(num_lost, num_gained) == pytest.approx(expected, abs=ROUNDING)


def test_the_mid_p_refuses_a_negative_count() -> None:
    with pytest.raises(ValueError, match="gained -2"):
        mcnemar_mid_p(1, -2)


def enumerated_p(sums: list[float]) -> float:
    totals = [abs(math.fsum(s * x for s, x in zip(signs, sums, strict=True))) for signs in signs_of(len(sums))]
    return sum(total >= abs(math.fsum(sums)) - 1e-9 for total in totals) / len(totals)


def signs_of(num_units: int) -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 1), repeat=num_units))


def test_a_few_sign_flips_are_counted_one_by_one() -> None:
    # 1 + 2 + 4 = 7: only +++ and --- reach it, 2 of 8.  1 + 2 - 4 = -1: all of +-1, +-3, +-5, +-7 reach 1.
    assert sign_flip_p([1.0, 2.0, 4.0]) == 0.25
    assert sign_flip_p([1.0, 2.0, -4.0]) == 1.0
    values = np.random.default_rng(1).normal(0.4, 1.0, 9).tolist()
    assert sign_flip_p(values) == pytest.approx(enumerated_p(values), abs=ROUNDING)


def test_differences_of_zero_are_no_units() -> None:
    assert sign_flip_p([1.0, 2.0, 4.0, *[0.0] * 1_000]) == 0.25
    assert sign_flip_p([0.0, 0.0]) == 1.0


def test_equal_sums_added_in_another_order_are_ties() -> None:
    # Tenths are not binary fractions: sums that are equal in whole numbers differ in the last digits here.
    tenths, units = [0.1, 0.2, 0.3, -0.4, 0.7, 0.6], [1.0, 2.0, 3.0, -4.0, 7.0, 6.0]
    assert sign_flip_p(tenths) == sign_flip_p(units)


def test_sign_flips_of_right_and_wrong_answers_are_mcnemars_exact_test() -> None:
    assert sign_flip_p([-1.0] * 9 + [1.0]) == pytest.approx(mcnemar_exact(9, 1), abs=ROUNDING)
    # Drawn: 10,000 draws of p = 0.0428 have a standard error of 0.002.
    assert sign_flip_p([-1.0] * 23 + [1.0] * 10) == pytest.approx(mcnemar_exact(23, 10), abs=0.008)


def test_a_cluster_flips_as_a_whole() -> None:
    # Cluster sums 1 + 2 = 3 and 5 - 1 = 4: 7 is reached by 2 of 4. The cluster of 1 and -1 is no unit.
    differences, clusters = [1.0, 5.0, 2.0, -1.0, 1.0, -1.0], ["a", "b", "a", "b", "c", "c"]
    assert sign_flip_p(differences, clusters=clusters) == 0.5
    assert sign_flip_p(differences) == pytest.approx(enumerated_p(differences), abs=ROUNDING)


def test_drawn_sign_flips_are_never_impossible_and_hang_on_the_seed_alone() -> None:
    values = [1.0] * 100
    assert sign_flip_p(values, num_draws=999) == 1 / 1_000
    mixed = np.random.default_rng(2).normal(0.15, 1.0, 100).tolist()
    assert sign_flip_p(mixed, seed=1) == sign_flip_p(mixed, seed=1) != sign_flip_p(mixed, seed=2)


def test_twelve_units_are_enumerated_and_thirteen_drawn() -> None:
    assert sign_flip_p([1.0] * 12) == 2 / 2**12
    assert sign_flip_p([1.0] * 13, num_draws=100) >= 1 / 101


def test_memory_is_bounded_however_many_examples() -> None:
    values = np.random.default_rng(3).normal(size=20_000)
    tracemalloc.start()
    sign_flip_p(values, num_draws=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 500 x 20,000 signs at once would be 80 MB


@pytest.mark.parametrize(
    ("differences", "clusters", "num_draws", "message"),
    [
        ([], None, 10, "at least one"),
        ([1.0, math.nan], None, 10, "finite"),
        ([1.0, 2.0], ["a"], 10, "clusters name 1"),
        ([1.0, 2.0], None, 0, "at least 1 draw"),
    ],
)
def test_what_cannot_be_flipped_is_refused(
    differences: list[float], clusters: list[str] | None, num_draws: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sign_flip_p(differences, clusters=clusters, num_draws=num_draws)


def test_holm_multiplies_by_the_tests_still_in_the_race_and_never_falls() -> None:
    # Ascending .005, .01, .03, .04: times 4, 3, 2, 1 = .02, .03, .06, .04, and the last is lifted to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=ROUNDING)
    assert holm([0.6, 0.5]) == [1.0, 1.0]


def test_benjamini_hochberg_divides_by_the_rank_and_never_rises_on_the_way_down() -> None:
    # Ascending .005, .01, .03, .04: times 4/1, 4/2, 4/3, 4/4 = .02, .02, .04, .04.
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02], abs=ROUNDING)
    # .02 * 3/1 = .06 and .021 * 3/2 = .0315: the first is lowered to the second.
    assert benjamini_hochberg([0.02, 0.021, 0.9]) == pytest.approx([0.0315, 0.0315, 0.9], abs=ROUNDING)


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_adjusting_needs_p_values_and_leaves_one_alone(adjust: Callable[[list[float]], list[float]]) -> None:
    assert adjust([]) == []
    assert adjust([0.03]) == [0.03]
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            adjust([0.5, wrong])

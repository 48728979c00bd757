"""Methods compared over seeds: worked by hand, equal to known tests at both ends, and calibrated by simulation."""

import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_ind, ttest_rel

from trainer.config.errors import InputError
from trainer.evaluation.seeds import (
    CROSSED_T,
    EXACT_ALIKE,
    compare_over_seeds,
    crossed_t_interval,
    hierarchical_bootstrap_interval,
)

ROUNDING = 1e-12
T_95_DF_3 = 3.182446305284263
T_95_DF_1 = 12.706204736174694
"""0.975 quantiles of Student's t."""

NUM_SIMULATIONS = 1_500
LEAST_COVERAGE = 0.93
"""Of a 95 % interval; 1 500 simulations know it to 0.006."""


def test_the_interval_adds_the_variance_of_seeds_and_of_examples() -> None:
    # Seed means: A 2 and 4, B 5 and 7: variance 2 over 2 seeds, 1 an arm. Examples: B - A is 6 - 2 and 6 - 4,
    # variance 2 over 2 examples, 1. Nothing is left over. V = 1 + 1 + 1, df = 3^2 / (1 + 1 + 1) = 3.
    low, high, method = crossed_t_interval(np.array([[1.0, 3.0], [3.0, 5.0]]), np.array([[5.0, 5.0], [7.0, 7.0]]))
    assert method == CROSSED_T
    assert (low + high) / 2 == pytest.approx(3, abs=ROUNDING)
    assert (high - low) / 2 == pytest.approx(T_95_DF_3 * math.sqrt(3), abs=ROUNDING)


def test_what_neither_seed_nor_example_explains_still_counts() -> None:
    # A: every seed and every example has mean 0.5; what is left is +-0.5, sum of squares 1 with 1 degree of freedom,
    # over 4 gains: 0.25. B: nothing varies.
    low, high, method = crossed_t_interval(np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros((2, 2)))
    assert method == CROSSED_T
    assert (high - low) / 2 == pytest.approx(T_95_DF_1 * 0.5, abs=ROUNDING)


def test_what_is_left_over_is_counted_once() -> None:
    # A is +-3 by seed, +-2 by example and +-1 left over. Seed means vary by 18 over 2 seeds: 9. Example means vary by
    # 8 over 2 examples: 4. Left over: sum of squares 4 with 1 degree of freedom, over 4 gains: 1. B: nothing varies.
    # V = 9 + 4 - 1 = 12; df = 12^2 / (9^2 + 4^2 + 1^2).
    low, high, _ = crossed_t_interval(np.array([[6.0, 0.0], [-2.0, -4.0]]), np.zeros((2, 2)))
    assert (high - low) / 2 == pytest.approx(student.ppf(0.975, 144 / 98) * math.sqrt(12), abs=1e-9)


def test_without_variation_of_examples_it_is_welchs_t_on_the_means_of_seeds() -> None:
    means_a, means_b = [0.1, 0.2, 0.6], [0.5, 0.9, 0.8, 0.4]
    low, high, _ = crossed_t_interval(np.outer(means_a, np.ones(50)), np.outer(means_b, np.ones(50)))
    welch = ttest_ind(means_b, means_a, equal_var=False).confidence_interval()
    assert (low, high) == pytest.approx((welch.low, welch.high), abs=1e-9)


def test_without_variation_of_seeds_it_is_the_paired_t_on_the_examples() -> None:
    random = np.random.default_rng(0)
    items_a, items_b = random.normal(size=40), random.normal(size=40)
    low, high, _ = crossed_t_interval(np.tile(items_a, (3, 1)), np.tile(items_b, (5, 1)))
    paired = ttest_rel(items_b, items_a).confidence_interval()
    assert (low, high) == pytest.approx((paired.low, paired.high), abs=1e-9)


def test_runs_that_all_gain_alike_have_an_interval_of_width_zero_that_says_so() -> None:
    low, high, method = crossed_t_interval(np.full((3, 7), 0.1), np.full((3, 7), 0.3))
    assert method == EXACT_ALIKE
    assert (low, high) == pytest.approx((0.2, 0.2), abs=ROUNDING)


Arm = np.ndarray
Simulate = Callable[[np.random.Generator], tuple[Arm, Arm]]


def simulation(*, num_seeds: int, num_examples: int, seed_sd: float, item_sd: float, rest_sd: float) -> Simulate:
    """Two arms of equal means: shared difficulty of the examples, and three sources of chance in each arm."""

    def draw(random: np.random.Generator) -> tuple[Arm, Arm]:
        difficulty_E = random.normal(size=num_examples)
        arms = [
            difficulty_E
            + seed_sd * random.normal(size=(num_seeds, 1))
            + item_sd * random.normal(size=num_examples)
            + rest_sd * random.normal(size=(num_seeds, num_examples))
            for _ in range(2)
        ]
        return arms[0], arms[1]

    return draw


def binary_simulation(random: np.random.Generator) -> tuple[Arm, Arm]:
    """Right before; afterwards lost with a probability that depends on seed and example, 10 % at the middle."""
    arms = []
    for _ in range(2):
        logit_SE = math.log(0.1 / 0.9) + 0.5 * random.normal(size=(3, 1)) + 1.5 * random.normal(size=100)
        arms.append(-(random.random((3, 100)) < 1 / (1 + np.exp(-logit_SE))).astype(float))
    return arms[0], arms[1]


SEEDS_DOMINATE = simulation(num_seeds=3, num_examples=100, seed_sd=0.3, item_sd=0.1, rest_sd=0.2)
ITEMS_DOMINATE = simulation(num_seeds=3, num_examples=100, seed_sd=0.03, item_sd=0.5, rest_sd=0.1)
SCENARIOS = {
    "seeds dominate": SEEDS_DOMINATE,
    "items dominate": ITEMS_DOMINATE,
    "both": simulation(num_seeds=3, num_examples=100, seed_sd=0.05, item_sd=0.2, rest_sd=0.4),
    "neither": simulation(num_seeds=3, num_examples=100, seed_sd=0, item_sd=0, rest_sd=0.4),
    "five seeds": simulation(num_seeds=5, num_examples=100, seed_sd=0.05, item_sd=0.2, rest_sd=0.4),
    "right or wrong": binary_simulation,
}


def coverage(simulate: Simulate, interval: Callable, *, num_simulations: int = NUM_SIMULATIONS) -> float:
    """Share of simulated comparisons whose interval holds the true difference, 0."""
    random = np.random.default_rng(0)
    ends = [interval(*simulate(random))[:2] for _ in range(num_simulations)]
    return sum(low <= 0 <= high for low, high in ends) / num_simulations


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_interval_covers_whatever_varies(scenario: str) -> None:
    assert coverage(SCENARIOS[scenario], crossed_t_interval) >= LEAST_COVERAGE


def test_the_bootstrap_under_covers_where_three_seeds_dominate() -> None:
    def bootstrap(gains_a_SE: Arm, gains_b_SE: Arm) -> tuple[float, float]:
        return hierarchical_bootstrap_interval(gains_a_SE, gains_b_SE, num_draws=500)

    assert coverage(SEEDS_DOMINATE, bootstrap, num_simulations=300) < LEAST_COVERAGE


def test_welchs_t_on_seed_means_under_covers_where_examples_dominate() -> None:
    def welch(gains_a_SE: Arm, gains_b_SE: Arm) -> tuple[float, float]:
        ends = ttest_ind(gains_b_SE.mean(axis=1), gains_a_SE.mean(axis=1), equal_var=False).confidence_interval()
        return ends.low, ends.high

    assert coverage(ITEMS_DOMINATE, welch, num_simulations=300) < LEAST_COVERAGE


def test_an_interval_of_less_confidence_is_narrower() -> None:
    gains_a_SE, gains_b_SE = SEEDS_DOMINATE(np.random.default_rng(1))
    low, high, _ = crossed_t_interval(gains_a_SE, gains_b_SE, confidence=0.8)
    wide_low, wide_high, _ = crossed_t_interval(gains_a_SE, gains_b_SE, confidence=0.99)
    assert wide_low < low < high < wide_high


def test_the_bootstrap_draws_the_same_examples_for_both_arms() -> None:
    # B is A plus 1 on every example: however examples are drawn, the difference is 1.
    items_E = np.random.default_rng(0).normal(size=30)
    gains_SE = np.tile(items_E, (3, 1))
    assert hierarchical_bootstrap_interval(gains_SE, gains_SE + 1) == pytest.approx((1, 1), abs=ROUNDING)


def test_the_bootstrap_draws_seeds_and_examples() -> None:
    # Only seeds vary, 2 in A, -1 and 1: the drawn mean is -1, 0 or 1 with 1/4, 1/2, 1/4, so both tails are reached.
    of_seeds = hierarchical_bootstrap_interval(np.array([[1.0] * 9, [-1.0] * 9]), np.zeros((2, 9)))
    assert of_seeds == (-1, 1)
    # Only examples vary, half -1 and half 1 of 100: standard error of the mean 0.1.
    items_E = np.array([1.0, -1.0] * 50)
    low, high = hierarchical_bootstrap_interval(np.zeros((2, 100)), np.tile(items_E, (2, 1)))
    assert (low, high) == pytest.approx((-0.196, 0.196), abs=0.01)


def test_the_bootstrap_is_a_function_of_its_seed() -> None:
    arms = SEEDS_DOMINATE(np.random.default_rng(2))
    first = hierarchical_bootstrap_interval(*arms, num_draws=700)
    assert hierarchical_bootstrap_interval(*arms, num_draws=700) == first
    assert hierarchical_bootstrap_interval(*arms, num_draws=700, seed=1) != first


def named(gains_SE: Arm) -> list[dict[str, float]]:
    return [{f"example {number}": float(gain) for number, gain in enumerate(row)} for row in gains_SE]


def test_a_comparison_reports_both_intervals_of_the_difference_of_means() -> None:
    gains_a_SE, gains_b_SE = SEEDS_DOMINATE(np.random.default_rng(3))
    result = compare_over_seeds(named(gains_a_SE), named(gains_b_SE[:2] + 5), num_draws=1000)
    assert (result.num_seeds_a, result.num_seeds_b, result.num_examples) == (3, 2, 100)
    assert result.mean_a == pytest.approx(gains_a_SE.mean(), abs=ROUNDING)
    assert result.mean_b == pytest.approx(gains_b_SE[:2].mean() + 5, abs=ROUNDING)
    assert result.difference == pytest.approx(result.mean_b - result.mean_a, abs=ROUNDING)
    # Ids are put in order, which is that of text: gains of the same example stay together, so the interval is the same.
    ends = crossed_t_interval(gains_a_SE, gains_b_SE[:2] + 5)
    assert (result.interval_low, result.interval_high) == pytest.approx(ends[:2], abs=1e-9)
    assert result.interval_low < result.bootstrap_low < result.difference < result.bootstrap_high
    assert result.interval_method == CROSSED_T


def test_the_order_of_seeds_and_examples_has_no_effect() -> None:
    gains_a_SE, gains_b_SE = SEEDS_DOMINATE(np.random.default_rng(4))
    arm_a, arm_b = named(gains_a_SE), named(gains_b_SE)
    shuffled = [dict(reversed(gains.items())) for gains in reversed(arm_a)]
    first, second = compare_over_seeds(arm_a, arm_b, num_draws=200), compare_over_seeds(shuffled, arm_b, num_draws=200)
    same = ("difference", "interval_low", "interval_high")
    assert [asdict(second)[key] for key in same] == pytest.approx([asdict(first)[key] for key in same], abs=1e-9)


def test_exchanged_arms_change_the_sign() -> None:
    arms = SEEDS_DOMINATE(np.random.default_rng(5))
    low, high, _ = crossed_t_interval(*arms)
    assert crossed_t_interval(arms[1], arms[0])[:2] == pytest.approx((-high, -low), abs=ROUNDING)


ONE_RUN = {"a": 0.1, "b": -0.2}


@pytest.mark.parametrize(
    ("arm_a", "arm_b", "part"),
    [
        ([ONE_RUN], [ONE_RUN] * 2, r"arm A: 1 training seed\(s\), at least 2"),
        ([ONE_RUN] * 2, [], r"arm B: 0 training seed\(s\)"),
        ([{"a": 1.0}] * 2, [{"a": 1.0}] * 2, "interval needs at least 2"),
        ([ONE_RUN, {"a": 0.1, "c": 0.1}], [ONE_RUN] * 2, r"arm A, seed 2: 2 id\(s\).*'b', 'c'"),
        ([ONE_RUN] * 2, [ONE_RUN, {"a": 0.1}], r"arm B, seed 2: 1 id\(s\).*'b'"),
        ([ONE_RUN] * 2, [ONE_RUN, {str(n): 0.1 for n in range(9)}], r"arm B, seed 2: 11 id\(s\).* and 6 more"),
        ([ONE_RUN] * 2, [ONE_RUN, {"a": 0.1, "b": math.nan}], "arm B, seed 2: the gain of example 'b' is nan"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_in_one_line(arm_a: list, arm_b: list, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        compare_over_seeds(arm_a, arm_b)
    assert "\n" not in str(caught.value)

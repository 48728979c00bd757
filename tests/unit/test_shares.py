"""How much tasks count by their sizes: what the formulas of Raffel et al. (2020) give, worked by hand."""

import numpy as np
import pytest

from trainer.config.data_schema import MixtureSection
from trainer.data.course import Course
from trainer.data.shares import base_weights

ROUNDING = 1e-12


def base(*, sizes=(100, 300, 1600), tokens=(4000, 2000, 2000), **mixture) -> list[float]:
    return base_weights(MixtureSection(**mixture), sizes=sizes, tokens=tokens).tolist()


def shares(*weight: float, **mixture) -> list[float]:
    """What tasks of these weights, or all of weight 1, have in every step of a run."""
    factors = base(**mixture)
    names = [f"task{number}" for number in range(len(factors))]
    weights = dict(zip(names, weight or [1.0] * len(names), strict=True))
    course = Course(names=names, base=factors, weights=weights, stages=(), replay=None, num_steps=3)
    assert course.is_steady
    return course.shares_at(2).tolist()


def test_explicit_shares_are_the_weights_whatever_the_sizes() -> None:
    assert shares(1.0, 1.0, 2.0) == [0.25, 0.25, 0.5]
    assert shares(1.0, 1.0, 2.0, unit="tokens") == [0.25, 0.25, 0.5]


def test_proportional_shares_are_the_numbers_of_examples() -> None:
    # 100, 300 and 1600 of 2000.
    assert shares(weights="proportional") == pytest.approx([0.05, 0.15, 0.8], abs=ROUNDING)


def test_proportional_shares_of_tokens_are_the_numbers_of_tokens() -> None:
    # 4000, 2000 and 2000 of 8000.
    assert shares(weights="proportional", unit="tokens") == [0.5, 0.25, 0.25]


def test_a_weight_multiplies_what_follows_from_the_size() -> None:
    # 6 * 100, 2 * 300 and 0.5 * 1600 are 600, 600 and 800 of 2000.
    assert shares(6.0, 2.0, 0.5, weights="proportional") == pytest.approx([0.3, 0.3, 0.4], abs=ROUNDING)


def test_a_task_counts_at_most_the_cap_in_the_unit_of_the_shares() -> None:
    # 100, 300 and min(1600, 600) of 1000; in tokens, all three are at least 600.
    assert shares(weights="proportional", cap=600) == pytest.approx([0.1, 0.3, 0.6], abs=ROUNDING)
    assert shares(weights="proportional", unit="tokens", cap=600) == pytest.approx([1 / 3] * 3, abs=ROUNDING)


def test_a_temperature_of_two_takes_square_roots() -> None:
    # Roots of 100, 400 and 2500: 10, 20 and 50 of 80.
    found = shares(sizes=(100, 400, 2500), weights="proportional", temperature=2.0)
    assert found == pytest.approx([0.125, 0.25, 0.625], abs=ROUNDING)


def test_the_cap_comes_before_the_temperature() -> None:
    # min(2500, 1600) is 1600: 10, 20 and 40 of 70. The other way round the cap would change nothing.
    found = shares(sizes=(100, 400, 2500), weights="proportional", temperature=2.0, cap=1600)
    assert found == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=ROUNDING)


def test_extreme_temperatures_stay_finite() -> None:
    # 1600^1000 is no float; relative to the largest, the others vanish. 1 / 1e12 makes all alike.
    assert shares(weights="proportional", temperature=0.001) == pytest.approx([0.0, 0.0, 1.0], abs=ROUNDING)
    assert shares(weights="proportional", temperature=1e12) == pytest.approx([1 / 3] * 3, abs=1e-9)


def test_the_largest_task_has_the_factor_one() -> None:
    assert base() == base(unit="tokens") == [1.0, 1.0, 1.0]
    assert base(weights="proportional") == [0.0625, 0.1875, 1.0]
    assert base(weights="proportional", unit="tokens", temperature=2.0)[0] == 1.0


def test_one_task_has_everything() -> None:
    assert shares(3.0, sizes=[5], tokens=[9]) == [1.0]


def test_shares_sum_to_one() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        sizes = generator.integers(1, 10**9, generator.integers(1, 40)).tolist()
        found = shares(
            sizes=sizes, tokens=[1] * len(sizes), weights="proportional", temperature=generator.uniform(0.1, 20)
        )
        assert sum(found) == pytest.approx(1.0, abs=ROUNDING)

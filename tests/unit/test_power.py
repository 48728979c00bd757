"""What a comparison can show, worked by hand and by simulation."""

import math

import numpy as np
import pytest

from trainer.evaluation.power import minimal_detectable_effect, num_examples_for_margin

Z_975, Z_80 = 1.959963984540054, 0.8416212335729143


def test_the_smallest_effect_that_is_found_four_times_in_five_is_2_8_standard_errors() -> None:
    assert minimal_detectable_effect(0.01) == pytest.approx(0.01 * (Z_975 + Z_80), abs=1e-12)
    assert minimal_detectable_effect(0.01, power=0.5) == pytest.approx(0.01 * Z_975, abs=1e-12)
    assert minimal_detectable_effect(0.0) == 0


def test_half_the_margin_needs_four_times_the_examples() -> None:
    # SE 0.01 at 1,000 examples, margin 0.02: (2.80159 * 0.01 / 0.02)^2 * 1000 = 1962.2.
    assert num_examples_for_margin(0.01, 1_000, 0.02) == 1_963
    assert num_examples_for_margin(0.01, 1_000, 0.01) == 7_849
    assert num_examples_for_margin(0.0, 1_000, 0.01) == 2


def test_at_that_many_examples_non_inferiority_is_shown_four_times_in_five() -> None:
    # 4,000 samples: standard error of the rate sqrt(0.8 * 0.2 / 4000) = 0.0063; rounding up adds nothing to speak of.
    deviation, margin = 0.4, 0.05
    needed = num_examples_for_margin(deviation / math.sqrt(100), 100, margin)
    gains = np.random.default_rng(1).normal(0.0, deviation / math.sqrt(needed), 4_000)
    assert np.mean(gains - Z_975 * deviation / math.sqrt(needed) > -margin) == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize("standard_error", [-0.1, math.nan, math.inf])
def test_a_standard_error_must_be_one(standard_error: float) -> None:
    with pytest.raises(ValueError, match="standard error"):
        minimal_detectable_effect(standard_error)
    with pytest.raises(ValueError, match="standard error"):
        num_examples_for_margin(standard_error, 100, 0.01)


@pytest.mark.parametrize(("confidence", "power"), [(0.0, 0.8), (1.0, 0.8), (0.95, 0.0), (0.95, 1.0)])
def test_confidence_and_power_must_be_probabilities(confidence: float, power: float) -> None:
    with pytest.raises(ValueError, match="confidence and power"):
        minimal_detectable_effect(0.01, confidence=confidence, power=power)


@pytest.mark.parametrize(("num_examples", "margin"), [(0, 0.01), (100, 0.0), (100, -0.01), (100, math.nan)])
def test_a_margin_and_the_examples_must_be_above_zero(num_examples: int, margin: float) -> None:
    with pytest.raises(ValueError, match="both must be above 0"):
        num_examples_for_margin(0.01, num_examples, margin)

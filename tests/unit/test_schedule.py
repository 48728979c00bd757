"""The learning rate is what the formula says at each step, and a function of the step alone."""

import math

import pytest

from trainer.schedule import learning_rate_at

PEAK = 0.8
TOLERANCE = 1e-12


def test_the_warm_up_rises_in_equal_parts_and_never_starts_at_zero() -> None:
    # Step s of 4: 0.8 * (s + 1) / 4.
    rates = [learning_rate_at(step, peak=PEAK, num_steps=10, warmup_steps=4) for step in range(4)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=TOLERANCE)


def test_the_cosine_goes_from_the_peak_to_its_final_share() -> None:
    # 4 steps of warm-up, then steps 4 to 12: progress 0, 1/4, 1/2, 3/4, 1 at steps 4, 6, 8, 10, 12.
    # 0.8 * (0.1 + 0.9 * (1 + cos(pi * progress)) / 2):
    #   progress 1/2: 0.8 * (0.1 + 0.45) = 0.44; progress 1: 0.8 * 0.1 = 0.08;
    #   progress 1/4: cos = sqrt(1/2), 0.8 * (0.1 + 0.45 + 0.45 * sqrt(1/2)) = 0.44 + 0.36 * sqrt(1/2); 3/4 mirrors it.
    quarter = 0.36 * math.sqrt(0.5)
    rates = [learning_rate_at(step, peak=PEAK, num_steps=13, warmup_steps=4) for step in (4, 6, 8, 10, 12)]
    assert rates == pytest.approx([0.8, 0.44 + quarter, 0.44, 0.44 - quarter, 0.08], abs=TOLERANCE)


@pytest.mark.parametrize("final_share", [0.0, 0.25, 1.0])
def test_the_last_step_uses_the_final_share(final_share: float) -> None:
    last = learning_rate_at(99, peak=PEAK, num_steps=100, warmup_steps=10, final_share=final_share)
    assert last == pytest.approx(final_share * PEAK, abs=TOLERANCE)


def test_the_cosine_never_rises_after_the_warm_up() -> None:
    rates = [learning_rate_at(step, peak=PEAK, num_steps=50, warmup_steps=5) for step in range(5, 50)]
    assert rates == sorted(rates, reverse=True)


def test_a_constant_schedule_stays_at_the_peak_after_the_warm_up() -> None:
    rates = [learning_rate_at(s, peak=PEAK, num_steps=6, warmup_steps=2, schedule="constant") for s in range(6)]
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.8, 0.8], abs=TOLERANCE)


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_a_run_of_one_step_uses_the_peak(warmup_steps: int) -> None:
    assert learning_rate_at(0, peak=PEAK, num_steps=1, warmup_steps=warmup_steps) == PEAK


def test_a_run_that_is_all_warm_up_ends_at_the_peak() -> None:
    rates = [learning_rate_at(step, peak=PEAK, num_steps=4, warmup_steps=4) for step in range(4)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=TOLERANCE)


def test_a_step_after_the_last_one_keeps_the_final_rate() -> None:
    assert learning_rate_at(500, peak=PEAK, num_steps=10) == pytest.approx(0.08, abs=TOLERANCE)

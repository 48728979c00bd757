"""The three verdicts at and on both sides of each of their bounds."""

import math

import pytest

from trainer.evaluation.verdict_rule import Verdict, exit_code, overall, verdict


@pytest.mark.parametrize(
    ("gain_low", "gain_high", "adjusted_p", "expected", "reason"),
    [
        (-0.005, 0.02, 1.0, "NON-INFERIOR", "gain in [-0.005, +0.02] is above the margin -0.01"),
        (0.01, 0.02, 0.001, "NON-INFERIOR", "gain in [+0.01, +0.02] is above the margin -0.01"),
        (
            *(-0.008, -0.002, 0.001, "NON-INFERIOR"),
            "gain in [-0.008, -0.002] is above the margin -0.01, a loss that is small but clear",
        ),
        (
            -0.01,
            -0.002,
            0.049,
            "REGRESSED",
            "gain in [-0.01, -0.002] is below 0 and reaches the margin -0.01, adjusted p 0.049",
        ),
        (
            -0.05,
            -0.02,
            0.0,
            "REGRESSED",
            "gain in [-0.05, -0.02] is below 0 and reaches the margin -0.01, adjusted p 0",
        ),
        (
            -0.05,
            -0.02,
            0.05,
            "INCONCLUSIVE",
            "gain in [-0.05, -0.02] is below 0, but adjusted p 0.05 is not below 0.05",
        ),
        (
            -0.05,
            0.0,
            0.01,
            "INCONCLUSIVE",
            "gain in [-0.05, +0] holds both 0 and the margin -0.01: too few examples to tell",
        ),
        (
            -0.01,
            0.03,
            1.0,
            "INCONCLUSIVE",
            "gain in [-0.01, +0.03] holds both 0 and the margin -0.01: too few examples to tell",
        ),
    ],
)
def test_the_verdict_and_its_reason(
    gain_low: float, gain_high: float, adjusted_p: float, expected: Verdict, reason: str
) -> None:
    assert verdict(gain_low, gain_high, margin=0.01, adjusted_p=adjusted_p) == (expected, reason)


def test_alpha_is_the_callers() -> None:
    assert verdict(-0.05, -0.02, margin=0.01, adjusted_p=0.03, alpha=0.01)[0] == "INCONCLUSIVE"
    assert verdict(-0.05, -0.02, margin=0.01, adjusted_p=0.03, alpha=0.04)[0] == "REGRESSED"


def test_nothing_is_non_inferior_by_a_margin_below_the_noise_but_a_loss_is_still_one() -> None:
    kept = (-0.005, 0.02)
    assert verdict(*kept, margin=0.01, adjusted_p=1.0, null_flip_rate=0.01)[0] == "NON-INFERIOR"
    said, reason = verdict(*kept, margin=0.01, adjusted_p=1.0, null_flip_rate=0.015)
    assert said == "INCONCLUSIVE"
    assert reason == "margin 0.01 is below the null-flip rate 0.015: gain in [-0.005, +0.02]"
    assert verdict(-0.05, -0.02, margin=0.01, adjusted_p=0.0, null_flip_rate=0.015)[0] == "REGRESSED"


@pytest.mark.parametrize(
    ("gain_low", "gain_high", "margin", "adjusted_p", "rate", "message"),
    [
        (0.1, 0.0, 0.01, 0.5, None, "no order"),
        (math.nan, 0.0, 0.01, 0.5, None, "no order"),
        (-0.1, 0.0, 0.0, 0.5, None, "margin"),
        (-0.1, 0.0, math.nan, 0.5, None, "margin"),
        (-0.1, 0.0, 0.01, 1.5, None, "between 0 and 1"),
        (-0.1, 0.0, 0.01, math.nan, None, "between 0 and 1"),
        (-0.1, 0.0, 0.01, 0.5, -0.1, "between 0 and 1"),
        (-0.1, 0.0, 0.01, 0.5, math.nan, "between 0 and 1"),
    ],
)
def test_what_no_verdict_follows_from_is_refused(
    gain_low: float, gain_high: float, margin: float, adjusted_p: float, rate: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        verdict(gain_low, gain_high, margin=margin, adjusted_p=adjusted_p, null_flip_rate=rate)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["NON-INFERIOR", "REGRESSED", "INCONCLUSIVE"], "REGRESSED"),
        (["NON-INFERIOR", "INCONCLUSIVE"], "INCONCLUSIVE"),
        (["NON-INFERIOR", "NON-INFERIOR"], "NON-INFERIOR"),
    ],
)
def test_the_worst_verdict_is_the_verdict_of_all(verdicts: list[Verdict], expected: Verdict) -> None:
    assert overall(verdicts) == expected


def test_no_verdicts_are_not_a_good_one() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        overall([])


def test_each_verdict_has_its_exit_code() -> None:
    assert [exit_code(one) for one in ("NON-INFERIOR", "REGRESSED", "INCONCLUSIVE")] == [0, 3, 4]

"""Error rates of the intervals, tests and verdicts, and the tables of docs/statistics.md.

Flips are not simulated: the chance of each outcome is summed, so those rates are exact. The rest is
simulated with fixed seeds. `python -m tests.calibration` prints the tables.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, stdtrit
from scipy.stats import bootstrap

from tests.simulated_changes import (
    CHURN,
    FLIPS,
    LOW_CHURN,
    NUM_CLUSTERED_SAMPLES,
    NUM_SAMPLES,
    QUESTIONS_PER_PASSAGE,
    REAL,
    SKEWED,
    SYMMETRIC,
    passages,
)
from trainer.evaluation.significance import holm, mcnemar_mid_p, sign_flip_p
from trainer.evaluation.statistics import mcnemar_exact, paired_difference, score_interval
from trainer.evaluation.verdict_rule import overall, verdict

ACCURACY = 0.6
"""Share right before."""
NUM_BOOTSTRAPPED_SAMPLES, NUM_DRAWS = 1_000, 1_000
"""Standard error of a coverage of 95 %: 0.007."""
NEGLIGIBLE = 1e-9
"""Probability of an outcome that is left out."""
LEVEL = 0.05
SIZES = (100, 300, 1000)


class Outcome(NamedTuple):
    """One possible pair of counts, its chance, and what is said of it."""

    chance: float
    num_lost: int
    num_gained: int
    low: float
    high: float
    exact_p: float
    mid_p: float


@cache
def said_of(num_pairs: int, num_lost: int, num_gained: int) -> tuple[float, float, float, float]:
    low, high = score_interval(num_lost, num_gained, num_pairs=num_pairs)
    return low, high, mcnemar_exact(num_lost, num_gained), mcnemar_mid_p(num_lost, num_gained)


@cache
def outcomes(num_pairs: int, drop: float, churn: float = CHURN) -> list[Outcome]:
    """All counts of flips that are likely enough to matter: trinomial with shares (churn +- drop) / 2."""
    lost, gained = (churn + drop) / 2, (churn - drop) / 2
    counts = np.arange(num_pairs + 1)
    lost_counts, gained_counts = (grid.ravel() for grid in np.meshgrid(counts, counts, indexing="ij"))
    fits = lost_counts + gained_counts <= num_pairs
    b, c = lost_counts[fits], gained_counts[fits]
    kept = num_pairs - b - c
    log_chance = gammaln(num_pairs + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(kept + 1)
    log_chance += b * math.log(lost) + c * math.log(gained) + kept * math.log(1 - churn)
    likely = log_chance > math.log(NEGLIGIBLE)
    rows = zip(np.exp(log_chance[likely]).tolist(), b[likely].tolist(), c[likely].tolist(), strict=True)
    return [Outcome(chance, x, y, *said_of(num_pairs, x, y)) for chance, x, y in rows]


def chance(num_pairs: int, drop: float, event: Callable[[Outcome], bool], *, churn: float = CHURN) -> float:
    return sum(one.chance for one in outcomes(num_pairs, drop, churn) if event(one))


def flip_misses(num_pairs: int, drop: float, churn: float = CHURN) -> tuple[float, float]:
    """Chance that the interval lies wholly above the true gain, and wholly below it."""
    above = chance(num_pairs, drop, lambda one: one.low > -drop, churn=churn)
    return above, chance(num_pairs, drop, lambda one: one.high < -drop, churn=churn)


@cache
def real_misses(kind: str, num_examples: int) -> tuple[float, float]:
    """Share of samples whose interval lies wholly above the truth, and wholly below it."""
    truth, samples = REAL[kind](num_examples)
    above = below = 0
    for change, weights in samples:
        result = paired_difference(np.zeros(num_examples), change, weights=weights)
        above += result.interval_low > truth
        below += result.interval_high < truth
    return above / NUM_SAMPLES, below / NUM_SAMPLES


@cache
def other_coverages(kind: str, num_examples: int) -> tuple[float, float]:
    """Coverage of two intervals that were not taken: Student's t without the correction, and BCa."""
    truth, samples = REAL[kind](num_examples)
    quantile = float(stdtrit(num_examples - 1, 0.975))
    covered = np.zeros(2)
    for change, weights in islice(samples, NUM_BOOTSTRAPPED_SAMPLES):
        result = paired_difference(np.zeros(num_examples), change, weights=weights)
        drawn = bootstrap(
            (change, weights),
            lambda d, w, axis=-1: d.sum(axis) / w.sum(axis),
            n_resamples=NUM_DRAWS,
            paired=True,
            vectorized=True,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
        covered += [
            abs(result.difference - truth) <= quantile * result.standard_error,
            drawn.low <= truth <= drawn.high,
        ]
    student, bca = (covered / NUM_BOOTSTRAPPED_SAMPLES).tolist()
    return student, bca


@cache
def clustered_rejections(kind: str, num_clusters: int) -> tuple[float, float, float, float]:
    """Share of null samples rejected by the interval and by sign flips, each with the clusters and without."""
    names = [str(number) for number in range(num_clusters) for _ in range(QUESTIONS_PER_PASSAGE)]
    binary = kind == FLIPS
    rejected = np.zeros(4)
    for change, weight in passages(num_clusters, kind=kind):
        before, after = (np.maximum(-change, 0.0), np.maximum(change, 0.0)) if binary else (0 * change, change * weight)
        results = [
            paired_difference(before, after, weights=weight, clusters=clusters, binary=binary)
            for clusters in (names, None)
        ]
        excluded = [not one.interval_low <= 0 <= one.interval_high for one in results]
        p_values = [sign_flip_p(after - before, clusters=clusters, num_draws=199) for clusters in (names, None)]
        rejected += [excluded[0], p_values[0] <= LEVEL, excluded[1], p_values[1] <= LEVEL]
    return tuple((rejected / NUM_CLUSTERED_SAMPLES).tolist())


@cache
def clustered_misses(num_clusters: int, churn: float, drop: float) -> tuple[float, float]:
    """Share of samples of right or wrong answers whose interval lies wholly above the true gain, and wholly below."""
    names = [str(number) for number in range(num_clusters) for _ in range(QUESTIONS_PER_PASSAGE)]
    above = below = 0
    for change, _ in passages(num_clusters, kind=FLIPS, churn=churn, drop=drop):
        result = paired_difference(np.maximum(-change, 0.0), np.maximum(change, 0.0), clusters=names, binary=True)
        above += result.interval_low > -drop
        below += result.interval_high < -drop
    return above / NUM_CLUSTERED_SAMPLES, below / NUM_CLUSTERED_SAMPLES


@cache
def false_alarms(num_pairs: int, num_capabilities: int, corrected: bool) -> float:
    """Share of null families of capabilities whose overall verdict is REGRESSED, at a margin of half a point."""
    random = np.random.default_rng(num_pairs)
    shares = [CHURN / 2, CHURN / 2, 1 - CHURN]
    num_alarms = 0
    for family in random.multinomial(num_pairs, shares, size=(NUM_SAMPLES, num_capabilities)).tolist():
        said = [said_of(num_pairs, lost, gained) for lost, gained, _ in family]
        p_values = [one[2] for one in said]
        adjusted = holm(p_values) if corrected else p_values
        rulings = [verdict(s[0], s[1], margin=0.005, adjusted_p=p)[0] for s, p in zip(said, adjusted, strict=True)]
        num_alarms += overall(rulings) == "REGRESSED"
    return num_alarms / NUM_SAMPLES


def verdict_chances(num_pairs: int, drop: float, margin: float) -> dict[str, float]:
    """Chance of each verdict on one capability alone."""
    chances = {"NON-INFERIOR": 0.0, "REGRESSED": 0.0, "INCONCLUSIVE": 0.0}
    for one in outcomes(num_pairs, drop):
        chances[verdict(one.low, one.high, margin=margin, adjusted_p=one.exact_p)[0]] += one.chance
    return chances


@cache
def unpaired_power(num_pairs: int, drop: float) -> float:
    """Rejections of z = (a1 - a2) / sqrt(se1^2 + se2^2), which forgets that the examples are the same."""
    random = np.random.default_rng(num_pairs)
    lost, gained = (CHURN + drop) / 2, (CHURN - drop) / 2
    shares = [ACCURACY - lost, lost, gained, 1 - ACCURACY - gained]
    both, first, second, _ = random.multinomial(num_pairs, shares, size=NUM_SAMPLES).T / num_pairs
    old, new = both + first, both + second
    error = np.sqrt((old * (1 - old) + new * (1 - new)) / (num_pairs - 1))
    return float((np.abs(old - new) > 1.959963984540054 * error).mean())


def table(head: str, rows: list[str]) -> str:
    return "\n".join([f"| {head} |", "|" + " --- |" * (head.count("|") + 1), *(f"| {row} |" for row in rows)])


def coverage_row(label: str, num_examples: int, above_below: tuple[float, float]) -> str:
    above, below = above_below
    return f"{label} | {num_examples} | {1 - above - below:.3f} | {above:.3f} | {below:.3f}"


def tables() -> str:
    """The tables of docs/statistics.md."""
    coverage = [
        coverage_row(
            f"right or wrong, churn {churn:.0%}, true drop {100 * drop:.0f} points",
            size,
            flip_misses(size, drop, churn),
        )
        for churn, drop in ((CHURN, 0.0), (CHURN, 0.04), (LOW_CHURN, 0.01))
        for size in SIZES
    ]
    coverage += [coverage_row(kind, size, real_misses(kind, size)) for kind in REAL for size in (30, *SIZES)]
    coverage += [
        coverage_row(
            f"{size} passages, churn {churn:.0%}, true drop {100 * drop:.0f} points",
            size * QUESTIONS_PER_PASSAGE,
            clustered_misses(size, churn, drop),
        )
        for churn, drop in ((CHURN, 0.04), (LOW_CHURN, 0.01))
        for size in (30, 100)
    ]
    others = [
        f"{kind} | {1 - sum(real_misses(kind, 100)):.3f} | "
        + " | ".join(f"{x:.3f}" for x in other_coverages(kind, 100))
        for kind in REAL
    ]
    clustered = [
        f"{kind} | {size} x {QUESTIONS_PER_PASSAGE} | "
        + " | ".join(f"{rate:.3f}" for rate in clustered_rejections(kind, size))
        for kind in (FLIPS, SYMMETRIC, SKEWED)
        for size in (30, 100)
    ]
    power = [
        f"{size} | {100 * drop:.0f} | {chance(size, drop, lambda one: one.exact_p <= LEVEL):.3f} | "
        f"{chance(size, drop, lambda one: one.mid_p <= LEVEL):.3f} | "
        f"{chance(size, drop, lambda one: not one.low <= 0 <= one.high):.3f} | {unpaired_power(size, drop):.3f}"
        for size in SIZES
        for drop in (0.0, 0.02, 0.04)
    ]
    verdicts = [
        f"{size} | {100 * drop:.0f} | " + " | ".join(f"{one:.3f}" for one in verdict_chances(size, drop, 0.04).values())
        for size in SIZES
        for drop in (0.0, 0.04, 0.08)
    ]
    alarms = [
        f"{size} | " + " | ".join(f"{false_alarms(size, 6, corrected):.3f}" for corrected in (True, False))
        for size in SIZES
    ]
    headed = [
        table("data | examples | coverage | wholly above the truth | wholly below", coverage),
        table("data, 100 examples | skewness-corrected t | Student's t | BCa bootstrap", others),
        table("data | passages x questions | interval | sign flips | interval, naive | sign flips, naive", clustered),
        table("examples | true drop in points | McNemar exact | mid-p | score interval | unpaired z", power),
        table("examples | true drop in points | NON-INFERIOR | REGRESSED | INCONCLUSIVE", verdicts),
        table("examples each | with Holm | without", alarms),
    ]
    return "\n\n".join(headed)


if __name__ == "__main__":
    print(tables())

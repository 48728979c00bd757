"""Paired statistics: how sure one can be that a measure changed between two models.

Pure functions of numbers. Knows nothing of tasks, records, files or tensors.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

NORMAL_MIN_EXAMPLES = 300
"""From this many examples on the interval is normal; below, bootstrapped."""

DRAWS_PER_BATCH = 1_000
"""Bootstrap draws held in memory at once: under 3 MB for each array of 300 examples."""

EXACT_UNCHANGED = "exact: no example changed"
EXACT_ALIKE = "exact: every example changed alike"
NORMAL = "normal (delta method)"
BCA = "BCa bootstrap"
PERCENTILE = "percentile bootstrap (BCa undefined)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """A measure before and after on the same examples, and the interval of its difference."""

    num_examples: int
    """Pairs compared."""
    before: float
    """sum(before) / sum(weights), in the unit of the measure."""
    after: float
    """sum(after) / sum(weights), in the unit of the measure."""
    difference: float
    """after - before, in the unit of the measure."""
    interval_low: float
    """Lower end of the two-sided confidence interval of `difference`."""
    interval_high: float
    """Upper end of the two-sided confidence interval of `difference`."""
    method: str
    """How the interval was made: one of the method names of this module."""


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    num_draws: int = 10_000,
) -> PairedDifference:
    """Difference of the ratio of sums sum(x) / sum(w) over paired examples, with its interval.

    Weights are the tokens of each example for a loss per token (values in summed nats), 1 for a score.
    From 300 examples: normal with the linearised standard error of a ratio (Cochran, Sampling Techniques,
    1977, chapter 6). Below: BCa bootstrap of whole pairs (Efron 1987), or the percentile bootstrap where
    BCa is not defined. If every difference is the same multiple of its weight, no method can see variance:
    the interval has width zero and `method` says so. It covers the choice of examples only, not the choice
    of training seed. Examples are taken to be independent.

    Raises:
        ValueError: fewer than 2 examples, unequal lengths, a value that is not finite, or a weight not above 0.
    """
    import numpy as np

    first = np.asarray(before, dtype=np.float64)
    second = np.asarray(after, dtype=np.float64)
    weight = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
    _check_inputs(first, after=second, weight=weight, confidence=confidence)
    low, high, method = _interval(
        first, after=second, weight=weight, confidence=confidence, seed=seed, num_draws=num_draws
    )
    return PairedDifference(
        num_examples=int(first.size),
        before=float(first.sum() / weight.sum()),
        after=float(second.sum() / weight.sum()),
        difference=float((second - first).sum() / weight.sum()),
        interval_low=low,
        interval_high=high,
        method=method,
    )


def mcnemar_exact(num_lost: int, num_gained: int) -> float:
    """Two-sided exact McNemar p: 2 * BinomCDF(min(lost, gained); lost + gained, 1/2), at most 1.

    The probability, if losing and gaining were equally likely, of flips at least as one-sided as these
    (McNemar 1947, in its exact binomial form). No flips give 1.

    Raises:
        ValueError: a negative count.
    """
    if num_lost < 0 or num_gained < 0:
        raise ValueError(f"counts of flips must not be negative: lost {num_lost}, gained {num_gained}")
    if num_lost + num_gained == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(num_lost, num_lost + num_gained, 0.5).pvalue)


def _check_inputs(before: "Floats", *, after: "Floats", weight: "Floats", confidence: float) -> None:
    """Refuse what no interval can be made of (ValueError)."""
    import numpy as np

    if not before.shape == after.shape == weight.shape or before.ndim != 1:
        raise ValueError(
            f"before, after and weights need one length each: {before.shape}, {after.shape}, {weight.shape}"
        )
    if before.size < 2:
        raise ValueError(f"{before.size} example(s): an interval needs at least 2")
    if not (np.isfinite(before).all() and np.isfinite(after).all() and np.isfinite(weight).all()):
        raise ValueError("a value or weight is not finite: look for nan or inf in the scores")
    if not (weight > 0).all():
        raise ValueError(f"weights must be above 0, the smallest is {weight.min()}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")


def _interval(
    before: "Floats", *, after: "Floats", weight: "Floats", confidence: float, seed: int, num_draws: int
) -> tuple[float, float, str]:
    """Low end, high end and method: exact if nothing varies, normal from 300 examples, else bootstrapped."""
    import numpy as np

    change = after - before
    if not change.any():
        return 0.0, 0.0, EXACT_UNCHANGED
    difference = float(change.sum() / weight.sum())
    residual = change - difference * weight
    rounding = 8 * float(np.finfo(np.float64).eps) * float(np.maximum(np.abs(before), np.abs(after)).max())
    if np.abs(residual).max() <= rounding < np.abs(change).max():
        return difference, difference, EXACT_ALIKE
    if before.size >= NORMAL_MIN_EXAMPLES:
        half_width = _standard_error(residual, weight=weight) * NormalDist().inv_cdf((1 + confidence) / 2)
        return difference - half_width, difference + half_width, NORMAL
    return _bootstrap_interval(change, weight=weight, confidence=confidence, seed=seed, num_draws=num_draws)


def _standard_error(residual: "Floats", *, weight: "Floats") -> float:
    """Linearised standard error of sum(d) / sum(w): sqrt(n / (n - 1) * sum r^2) / sum(w), r = d - D w."""
    scale = residual.size / (residual.size - 1)
    return math.sqrt(scale * float(residual @ residual)) / float(weight.sum())


def _bootstrap_interval(
    change: "Floats", *, weight: "Floats", confidence: float, seed: int, num_draws: int
) -> tuple[float, float, str]:
    """BCa interval of sum(change) / sum(weight) and its name; the percentile interval where BCa is not finite.

    BCa is undefined if no draw, or every draw, falls below the estimate, or if leaving out any one pair
    gives the same ratio.
    """
    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    def ratio(numerator: "Floats", denominator: "Floats", axis: int = -1) -> "Floats":
        return np.asarray(numerator.sum(axis=axis) / denominator.sum(axis=axis))

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)  # handled below, and named in the method
        drawn = bootstrap(
            (change, weight),
            ratio,
            n_resamples=num_draws,
            batch=DRAWS_PER_BATCH,
            vectorized=True,
            paired=True,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
    if math.isfinite(low) and math.isfinite(high):
        return low, high, BCA
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn.bootstrap_distribution, [tail, 1 - tail])
    return float(low), float(high), PERCENTILE

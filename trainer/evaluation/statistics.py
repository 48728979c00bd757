"""Paired statistics: how sure one can be that a measure changed between two models.

Pure functions of numbers. Knows nothing of tasks, records, files or tensors. Which interval
is used when, and how well each is calibrated: docs/statistics.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

# N examples, C clusters (of one example each where none are given)

EXACT_IDENTICAL = "exact: same outputs"
EXACT_UNCHANGED = "exact: no example changed"
EXACT_ALIKE = "exact: every example changed alike"
EXACT_CLUSTERS_ALIKE = "exact: every cluster changed alike"
SCORE = "score (Tango)"
SCORE_OF_CLUSTERS = "score (Tango) of clusters"
LINEARISED = "skewness-corrected t"
CLUSTERED = "skewness-corrected t of clusters"
CLUSTERED_FLIPS = "skewness-corrected t or score (Tango) of clusters, the wider"

HALVINGS = 60
"""Of an interval of at most 2: the end is then exact to 2 / 2^60, below the rounding of a double near 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """A measure before and after on the same examples, and the interval of its difference."""

    num_examples: int
    """Pairs compared."""
    num_clusters: int
    """Groups of examples that may depend on each other; `num_examples` where none were given."""
    before: float
    """sum(before) / sum(weights), in the unit of the measure."""
    after: float
    """sum(after) / sum(weights), in the unit of the measure."""
    difference: float
    """after - before, in the unit of the measure."""
    standard_error: float
    """Of `difference`, in its unit. Of a score interval: its half width in normal quantiles. 0 if exact."""
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
    clusters: Sequence[str] | None = None,
    binary: bool = False,
    identical: bool = False,
    confidence: float = 0.95,
) -> PairedDifference:
    """Difference of the ratio of sums sum(x) / sum(w) over paired examples, with its interval.

    Weights are the tokens of each example for a loss per token (values in summed nats), 1 for a score.
    `clusters` names the cluster of each example; without it, examples are taken to be independent. `binary`:
    every value is 0 or 1 by its nature, so that unchanged scores are still only a sample. `identical`: the
    caller knows that all outputs of both sides are the same, not only their scores; no sample could differ.

    Binary: `score_interval`, and in clusters the wider of it and t. Otherwise Student's t with the linearised,
    cluster-robust standard error of a ratio (`_t_interval`). Real values that all changed alike, or not at all,
    show no variance: the interval has width zero and `method` says so. It covers the choice of examples only,
    not the choice of training seed.

    Raises:
        ValueError: fewer than 2 examples or clusters, unequal lengths, a value that is not finite, a weight not
            above 0, binary values other than 0 and 1 or with weights other than 1, or `identical` values that differ.
    """
    import numpy as np

    first_N = np.asarray(before, dtype=np.float64)
    second_N = np.asarray(after, dtype=np.float64)
    weight_N = np.ones_like(first_N) if weights is None else np.asarray(weights, dtype=np.float64)
    _check_inputs(first_N, after_N=second_N, weight_N=weight_N, confidence=confidence)
    if binary:
        _check_binary(first_N, after_N=second_N, weight_N=weight_N)
    numbers_N = _cluster_numbers(clusters, num_examples=first_N.size)
    num_clusters = int(numbers_N.max()) + 1
    if identical:
        if not np.array_equal(first_N, second_N):
            raise ValueError("identical outputs with different scores: measure both models again with one scorer")
        low, high, error, method = 0.0, 0.0, 0.0, EXACT_IDENTICAL
    elif binary and num_clusters == first_N.size:
        low, high, error, method = _score_of_flips(second_N - first_N, num_units=num_clusters, confidence=confidence)
    else:
        low, high, error, method = _ratio_interval(
            first_N, after_N=second_N, weight_N=weight_N, numbers_N=numbers_N, binary=binary, confidence=confidence
        )
    return PairedDifference(
        num_examples=first_N.size,
        num_clusters=num_clusters,
        before=float(first_N.sum() / weight_N.sum()),
        after=float(second_N.sum() / weight_N.sum()),
        difference=float((second_N - first_N).sum() / weight_N.sum()),
        standard_error=error,
        interval_low=low,
        interval_high=high,
        method=method,
    )


def score_interval(
    num_lost: float, num_gained: float, *, num_pairs: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Low and high end of (gained - lost) / pairs: all differences that the score test does not reject.

    The ends D of Tango (Statistics in Medicine 17 (1998) 891-908): |b - c - n D| = z sqrt(n (2 q + D (1 - D))),
    b gained, c lost of n pairs, and q the share lost that is most likely if the true difference is D. No flips
    give +-z^2 / (n + z^2). Counts need not be whole.

    Raises:
        ValueError: a negative count, or more flips than pairs.
    """
    if min(num_lost, num_gained) < 0 or not 0 < num_pairs >= num_lost + num_gained:
        raise ValueError(f"{num_lost} lost and {num_gained} gained of {num_pairs} pairs: not counts of flips")
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    low = _score_end(num_lost, num_gained=num_gained, num_pairs=num_pairs, quantile=quantile, beyond=-1.0)
    high = _score_end(num_lost, num_gained=num_gained, num_pairs=num_pairs, quantile=quantile, beyond=1.0)
    return low, high


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


def _check_inputs(before_N: "Floats", *, after_N: "Floats", weight_N: "Floats", confidence: float) -> None:
    """Refuse what no interval can be made of (ValueError)."""
    import numpy as np

    if not before_N.shape == after_N.shape == weight_N.shape or before_N.ndim != 1:
        raise ValueError(
            f"before, after and weights need one length each: {before_N.shape}, {after_N.shape}, {weight_N.shape}"
        )
    if before_N.size < 2:
        raise ValueError(f"{before_N.size} example(s): an interval needs at least 2")
    if not (np.isfinite(before_N).all() and np.isfinite(after_N).all() and np.isfinite(weight_N).all()):
        raise ValueError("a value or weight is not finite: look for nan or inf in the scores")
    if not (weight_N > 0).all():
        raise ValueError(f"weights must be above 0, the smallest is {weight_N.min()}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")


def _check_binary(before_N: "Floats", *, after_N: "Floats", weight_N: "Floats") -> None:
    """Refuse binary values other than 0 and 1, or that do not all weigh 1 (ValueError)."""
    if not all(((value_N == 0) | (value_N == 1)).all() for value_N in (before_N, after_N)):
        raise ValueError("binary values must be 0 or 1: pass binary=False for other scores")
    if not (weight_N == 1).all():
        raise ValueError("binary values must have weight 1: pass binary=False for a weighted share")


def _cluster_numbers(clusters: Sequence[str] | None, *, num_examples: int) -> "NDArray[np.intp]":
    """Number from 0 of each example's cluster, in order of first appearance (N)."""
    import numpy as np

    if clusters is None:
        return np.arange(num_examples)
    if len(clusters) != num_examples:
        raise ValueError(f"clusters name {len(clusters)} examples, there are {num_examples}")
    number_of = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    if len(number_of) < 2:
        raise ValueError(f"{len(number_of)} cluster(s): an interval needs at least 2 that are independent")
    return np.array([number_of[name] for name in clusters], dtype=np.intp)


def _score_of_flips(change_N: "Floats", *, num_units: float, confidence: float) -> tuple[float, float, float, str]:
    """Ends, standard error and method of the score interval, the counts scaled to this many independent units."""
    scale = num_units / change_N.size
    num_lost, num_gained = float((change_N < 0).sum()) * scale, float((change_N > 0).sum()) * scale
    low, high = score_interval(num_lost, num_gained, num_pairs=num_units, confidence=confidence)
    error = (high - low) / 2 / NormalDist().inv_cdf((1 + confidence) / 2)
    return low, high, error, SCORE if scale == 1 else SCORE_OF_CLUSTERS


def _score_end(num_lost: float, *, num_gained: float, num_pairs: float, quantile: float, beyond: float) -> float:
    """The difference between the estimate and `beyond` (-1 or 1) at which the score reaches the quantile.

    The score falls as the difference rises, so halving finds the one place; no bracket can be lost to rounding.
    """
    inside, outside = (num_gained - num_lost) / num_pairs, beyond
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        # Most likely share lost at this difference (Tango 1998): the larger root of
        # 2 n q^2 + linear q + constant = 0.
        linear = (2 * num_pairs + num_lost - num_gained) * middle - num_lost - num_gained
        constant = -num_lost * middle * (1 - middle)
        share_lost = (math.sqrt(max(0.0, linear**2 - 8 * num_pairs * constant)) - linear) / (4 * num_pairs)
        variance = max(0.0, num_pairs * (2 * share_lost + middle * (1 - middle)))
        if (num_gained - num_lost - num_pairs * middle) ** 2 < quantile**2 * variance:
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def _ratio_interval(
    before_N: "Floats",
    *,
    after_N: "Floats",
    weight_N: "Floats",
    numbers_N: "NDArray[np.intp]",
    binary: bool,
    confidence: float,
) -> tuple[float, float, float, str]:
    """Ends, standard error and method. If no cluster stands out: exact, or for binary values each counts once."""
    import numpy as np

    change_N = after_N - before_N
    total = float(weight_N.sum())
    difference = float(change_N.sum()) / total
    residual_C = np.bincount(numbers_N, weights=change_N - difference * weight_N).astype(np.float64)
    rounding = 8 * float(np.finfo(np.float64).eps) * float(np.maximum(np.abs(before_N), np.abs(after_N)).max())
    rounding_C = rounding * np.bincount(numbers_N)
    is_clustered = residual_C.size < change_N.size
    is_alike = bool((np.abs(residual_C) <= rounding_C).all() and rounding < np.abs(change_N).max())
    if is_alike or not change_N.any():
        if binary:
            return _score_of_flips(change_N, num_units=residual_C.size, confidence=confidence)
        alike = EXACT_CLUSTERS_ALIKE if is_clustered else EXACT_ALIKE
        return difference, difference, 0.0, alike if change_N.any() else EXACT_UNCHANGED
    error = math.sqrt(residual_C.size / (residual_C.size - 1)) * float(np.linalg.norm(residual_C)) / total
    low, high = _t_interval(residual_C, difference=difference, standard_error=error, confidence=confidence)
    if binary:
        low, high = _widened(low, high=high, change_N=change_N, standard_error=error, confidence=confidence)
        return low, high, error, CLUSTERED_FLIPS
    return low, high, error, CLUSTERED if is_clustered else LINEARISED


def _widened(
    low: float, *, high: float, change_N: "Floats", standard_error: float, confidence: float
) -> tuple[float, float]:
    """Ends moved outwards to the score interval of the effective number of examples, where that is wider.

    Counts divided by the design effect, here at least 1, serve methods for independent examples (Rao and Scott 1992,
    Biometrics 48: 577-585). With few flipped clusters, t alone ends too early on the side of the loss.
    """
    independent = float(change_N.var()) / change_N.size
    num_units = change_N.size * min(1.0, independent / standard_error**2)
    score_low, score_high, _, _ = _score_of_flips(change_N, num_units=num_units, confidence=confidence)
    return min(low, score_low), max(high, score_high)


def _t_interval(
    residual_C: "Floats", *, difference: float, standard_error: float, confidence: float
) -> tuple[float, float]:
    """Ends of Student's interval with C - 1 degrees of freedom, moved outwards where the residuals are skewed.

    Residuals are r = sum over the cluster of d - D w; the standard error of D is sqrt(C / (C - 1) * sum r^2) / sum(w)
    (Cochran, Sampling Techniques, 1977, chapter 6; whole clusters: Miller 2024, arXiv 2411.00640). A t interval of
    skewed values misses on the side of the long tail. Hall's cubic (Journal of the Royal Statistical Society B 54
    (1992) 221-228) takes the skewness out of the t statistic: its inverse at the quantile x, with
    a = skewness / sqrt(C), is 3 / a * ((1 + a (x - a / 6))^(1/3) - 1), written below without the division by a.
    Each end is the outer of Student's and Hall's: Hall's would also pull the end at the short tail in.
    """
    from scipy.special import stdtrit

    num_clusters = residual_C.size
    scaled_C = residual_C / abs(residual_C).max()  # cubes of very small residuals would be 0
    skewness = float((scaled_C**3).mean()) / float((scaled_C**2).mean()) ** 1.5
    lean = skewness / math.sqrt(num_clusters)
    quantile = float(stdtrit(num_clusters - 1, (1 + confidence) / 2))
    corrected = []
    for end in (quantile, -quantile):
        root = math.cbrt(1 + lean * (end - lean / 6))
        corrected.append(3 * (end - lean / 6) / (root * root + root + 1))
    return (
        difference - standard_error * max(quantile, corrected[0]),
        difference - standard_error * min(-quantile, corrected[1]),
    )

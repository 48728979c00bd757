"""How likely a change is by chance alone, for one measure and for several together.

Pure functions of numbers. Knows nothing of tasks, records or files. McNemar's exact p
stands beside the intervals, in statistics.py.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

# D draws, U units that flip their sign as a whole (examples, or clusters of them)

MAX_ENUMERATED_UNITS = 12
"""Up to this many units all 2^12 = 4,096 assignments of signs are counted; above, they are drawn."""

SIGNS_PER_BATCH = 1_000_000
"""Signs held in memory at once, at most: 8 MB."""

TIE = 1e-9
"""Sums closer than this share of sum(|d|) are equal: they differ by the order of adding only."""


def mcnemar_mid_p(num_lost: int, num_gained: int) -> float:
    """Two-sided mid-p of McNemar: 2 * BinomCDF(m; k, 1/2) - BinomPMF(m; k, 1/2), m the fewer of k flips.

    Counts the observed split by half: less conservative than the exact p, at the price of a type I error that
    can lie a little above the level (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91).

    Raises:
        ValueError: a negative count.
    """
    if num_lost < 0 or num_gained < 0:
        raise ValueError(f"counts of flips must not be negative: lost {num_lost}, gained {num_gained}")
    from scipy.stats import binom

    fewer, flips = min(num_lost, num_gained), num_lost + num_gained
    return float(min(1.0, 2 * binom.cdf(fewer, flips, 0.5) - binom.pmf(fewer, flips, 0.5)))


def sign_flip_p(
    differences: Sequence[float], *, clusters: Sequence[str] | None = None, seed: int = 0, num_draws: int = 10_000
) -> float:
    """Two-sided p of sum(differences) among all assignments of signs: exact up to 12 nonzero units, else drawn.

    Under the null before and after are exchangeable, so each unit is as likely to have the other sign (Fisher,
    The Design of Experiments, 1935, section 21). A unit is an example, or a whole cluster. Drawn, the p is
    (1 + hits) / (1 + draws), never 0 (Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular
    Biology 9:39).

    Raises:
        ValueError: no differences, one that is not finite, clusters of another length, or no draws.
    """
    import numpy as np

    difference_N = np.asarray(differences, dtype=np.float64)
    if difference_N.ndim != 1 or difference_N.size == 0 or not np.isfinite(difference_N).all():
        raise ValueError("sign flips need at least one difference, all of them finite")
    if clusters is not None and len(clusters) != difference_N.size:
        raise ValueError(f"clusters name {len(clusters)} examples, there are {difference_N.size}")
    if num_draws < 1:
        raise ValueError(f"sign flips need at least 1 draw, not {num_draws}")
    tie = TIE * float(np.abs(difference_N).sum())
    sum_U = difference_N if clusters is None else _cluster_sums(difference_N, clusters=clusters)
    sum_U = sum_U[np.abs(sum_U) > tie / difference_N.size]
    extreme = abs(float(sum_U.sum())) - tie
    if sum_U.size <= MAX_ENUMERATED_UNITS:
        flipped_DU = np.arange(2**sum_U.size)[:, np.newaxis] >> np.arange(sum_U.size) & 1
        return float((np.abs(sum_U.sum() - 2 * (flipped_DU @ sum_U)) >= extreme).mean())
    return (1 + _drawn_hits(sum_U, extreme=extreme, seed=seed, num_draws=num_draws)) / (1 + num_draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p, in the order given: the largest so far of (m - i + 1) p_(i), at most 1 (Holm 1979).

    Rejecting those at most alpha keeps the probability of any false rejection at most alpha, however the
    tests depend on each other.

    Raises:
        ValueError: a p outside [0, 1].
    """
    order = _ascending(p_values)
    adjusted, largest = [0.0] * len(order), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p, in the order given: the smallest from here on of m / i * p_(i) (Benjamini and Hochberg 1995).

    Rejecting those at most q keeps the expected share of false ones among the rejected at most q, if the tests
    are independent or positively dependent.

    Raises:
        ValueError: a p outside [0, 1].
    """
    order = _ascending(p_values)
    adjusted, smallest = [0.0] * len(order), 1.0
    for place, index in reversed(list(enumerate(order))):
        smallest = min(smallest, len(order) / (place + 1) * p_values[index])
        adjusted[index] = smallest
    return adjusted


def _ascending(p_values: Sequence[float]) -> list[int]:
    """Places of the p values from the smallest on; refuses what is no p value (ValueError)."""
    wrong = [p for p in p_values if math.isnan(p) or not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"p values must lie between 0 and 1, not {wrong[0]}")
    return sorted(range(len(p_values)), key=lambda index: p_values[index])


def _cluster_sums(difference_N: "Floats", *, clusters: Sequence[str]) -> "Floats":
    """Sum of the differences of each cluster, in order of first appearance (U)."""
    import numpy as np

    number_of = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    numbers_N = [number_of[name] for name in clusters]
    return np.bincount(numbers_N, weights=difference_N).astype(np.float64)


def _drawn_hits(sum_U: "Floats", *, extreme: float, seed: int, num_draws: int) -> int:
    """How many of the drawn assignments of signs have a sum at least as extreme, a bounded number at a time."""
    import numpy as np

    random = np.random.default_rng(seed)
    batch = max(1, SIGNS_PER_BATCH // sum_U.size)
    num_hits = 0
    for start in range(0, num_draws, batch):
        flipped_DU = random.integers(0, 2, size=(min(batch, num_draws - start), sum_U.size), dtype=np.int8)
        num_hits += int((np.abs(sum_U.sum() - 2 * (flipped_DU.astype(np.float64) @ sum_U)) >= extreme).sum())
    return num_hits

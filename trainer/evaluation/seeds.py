"""Two training methods compared over several training seeds: is one better, or was it the luck of the seed?

An interval over the examples of one trained model says nothing of the method that trained it; here both the
seeds and the examples vary. Pure functions of numbers; knows nothing of tasks, files or tensors.

S seeds of one arm, E examples, D draws of the bootstrap
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from trainer.config.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

Gains: TypeAlias = Sequence[Mapping[str, float]]
"""Of one arm, for each training seed: example id -> score after - score before, better positive."""

CROSSED_T = "t over seeds and examples (crossed components of variance, Satterthwaite)"
EXACT_ALIKE = "exact: no seed and no example varies"

MIN_SEEDS = 2
MAX_IDS_IN_MESSAGE = 5
DRAWS_PER_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedComparison:
    """Mean gain of arm B minus that of arm A, over seeds and examples."""

    num_seeds_a: int
    """Training runs of arm A."""
    num_seeds_b: int
    """Training runs of arm B."""
    num_examples: int
    """Examples that every run was measured on."""
    mean_a: float
    """Mean gain of arm A, in the unit of the gains."""
    mean_b: float
    """Mean gain of arm B, in the unit of the gains."""
    difference: float
    """mean_b - mean_a: above 0, arm B does better."""
    interval_low: float
    """Lower end of the interval of `difference`: the one to decide by."""
    interval_high: float
    """Upper end of the interval of `difference`."""
    interval_method: str
    """How the interval was made: one of the method names of this module."""
    bootstrap_low: float
    """Lower end of the hierarchical bootstrap: a cross-check, too narrow with few seeds."""
    bootstrap_high: float
    """Upper end of the hierarchical bootstrap."""


def compare_over_seeds(
    arm_a: Gains, arm_b: Gains, *, confidence: float = 0.95, seed: int = 0, num_draws: int = 10_000
) -> SeedComparison:
    """Compare two methods by their gains on the same examples, each trained with several seeds.

    The interval is that of `crossed_t_interval`: its simulated coverage at 95 % stays above 93 % from 3 seeds on,
    whether seeds, examples or neither dominate (tests/unit/test_seeds.py). The hierarchical bootstrap beside it
    under-covers where seeds dominate: S seeds drawn from S vary by (S - 1) / S of their variance, and its
    quantiles know no t. Welch's t on the means of seeds under-covers where examples dominate, as all runs share them.

    Raises:
        InputError: fewer than 2 seeds in an arm, fewer than 2 examples, ids that are not the same in every run,
            or a gain that is not finite.
    """
    ids = _shared_ids(arm_a, arm_b)
    gains_a_SE, gains_b_SE = _as_array(arm_a, ids=ids, name="A"), _as_array(arm_b, ids=ids, name="B")
    low, high, method = crossed_t_interval(gains_a_SE, gains_b_SE, confidence=confidence)
    bootstrap_low, bootstrap_high = hierarchical_bootstrap_interval(
        gains_a_SE, gains_b_SE, confidence=confidence, seed=seed, num_draws=num_draws
    )
    return SeedComparison(
        num_seeds_a=len(arm_a),
        num_seeds_b=len(arm_b),
        num_examples=len(ids),
        mean_a=float(gains_a_SE.mean()),
        mean_b=float(gains_b_SE.mean()),
        difference=float(gains_b_SE.mean() - gains_a_SE.mean()),
        interval_low=low,
        interval_high=high,
        interval_method=method,
        bootstrap_low=bootstrap_low,
        bootstrap_high=bootstrap_high,
    )


def crossed_t_interval(
    gains_a_SE: "Floats", gains_b_SE: "Floats", *, confidence: float = 0.95
) -> tuple[float, float, str]:
    """Low end, high end and method of a t interval of mean B - mean A with seeds and examples both random.

    A gain is taken as mean + seed + example + rest in each arm. The variance of the difference is then
    V = sum over arms of (variance of seed means / S) + (variance of example differences / E) - V_rest: the first
    two each hold V_rest, the rest's variance / (S E) of both arms, so it is taken off once; V is never taken for
    less than one of the three. Components of variance of two crossed factors: Searle, Casella & McCulloch, Variance
    Components, 1992; degrees of freedom: Satterthwaite 1946. Without variation of examples it is Welch's t on the
    means of seeds; without variation of seeds, the paired t on the examples.
    """
    import numpy as np
    from scipy.stats import t as student

    num_examples = gains_a_SE.shape[1]
    difference = float(gains_b_SE.mean() - gains_a_SE.mean())
    item_E = gains_b_SE.mean(axis=0) - gains_a_SE.mean(axis=0)
    of_items = float(item_E.var(ddof=1)) / num_examples
    terms = [(of_items, num_examples - 1)]
    of_seeds = of_rest = 0.0
    for gains_SE in (gains_a_SE, gains_b_SE):
        num_seeds = gains_SE.shape[0]
        seed_S = gains_SE.mean(axis=1)
        rest_SE = gains_SE - seed_S[:, None] - gains_SE.mean(axis=0) + gains_SE.mean()
        df_rest = (num_seeds - 1) * (num_examples - 1)
        seeds = float(seed_S.var(ddof=1)) / num_seeds
        rest = float((rest_SE**2).sum()) / df_rest / (num_seeds * num_examples)
        terms += [(seeds, num_seeds - 1), (rest, df_rest)]
        of_seeds, of_rest = of_seeds + seeds, of_rest + rest
    variance = max(of_seeds + of_items - of_rest, of_seeds, of_items, of_rest)
    rounding = 8 * float(np.finfo(np.float64).eps) * float(max(np.abs(gains_a_SE).max(), np.abs(gains_b_SE).max()))
    if math.sqrt(variance) <= rounding:
        return difference, difference, EXACT_ALIKE
    df = variance**2 / sum(term**2 / df_term for term, df_term in terms)
    half_width = float(student.ppf((1 + confidence) / 2, df)) * math.sqrt(variance)
    return difference - half_width, difference + half_width, CROSSED_T


def hierarchical_bootstrap_interval(
    gains_a_SE: "Floats", gains_b_SE: "Floats", *, confidence: float = 0.95, seed: int = 0, num_draws: int = 10_000
) -> tuple[float, float]:
    """Percentile interval of mean B - mean A: seeds drawn within each arm, examples drawn once for both arms."""
    import numpy as np

    random = np.random.default_rng(seed)
    num_examples = gains_a_SE.shape[1]
    means: list[Floats] = []
    for start in range(0, num_draws, DRAWS_PER_BATCH):
        size = min(DRAWS_PER_BATCH, num_draws - start)
        drawn_a_DE, drawn_b_DE = (
            random.multinomial(len(gains_SE), np.full(len(gains_SE), 1 / len(gains_SE)), size=size)
            @ gains_SE
            / len(gains_SE)
            for gains_SE in (gains_a_SE, gains_b_SE)
        )
        example_DE = random.integers(num_examples, size=(size, num_examples))
        means.append(np.take_along_axis(drawn_b_DE - drawn_a_DE, example_DE, axis=1).mean(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _shared_ids(arm_a: Gains, arm_b: Gains) -> list[str]:
    """Ids of the examples of every run, sorted; raises InputError on too few runs or examples, or on unlike ids."""
    for name, arm in (("A", arm_a), ("B", arm_b)):
        if len(arm) < MIN_SEEDS:
            raise InputError(
                f"arm {name}: {len(arm)} training seed(s), at least {MIN_SEEDS} are needed to see how much the seed "
                "matters. Train with more seeds."
            )
    ids = arm_a[0].keys()
    if len(ids) < 2:
        raise InputError(f"arm A, seed 1: {len(ids)} example(s), an interval needs at least 2. Add examples.")
    for name, arm in (("A", arm_a), ("B", arm_b)):
        for number, gains in enumerate(arm, start=1):
            unlike = sorted(gains.keys() ^ ids)
            if unlike:
                shown = ", ".join(repr(key) for key in unlike[:MAX_IDS_IN_MESSAGE])
                more = f" and {len(unlike) - MAX_IDS_IN_MESSAGE} more" if len(unlike) > MAX_IDS_IN_MESSAGE else ""
                raise InputError(
                    f"arm {name}, seed {number}: {len(unlike)} id(s) are only here or only in arm A, seed 1: "
                    f"{shown}{more}. Measure every run on the same examples."
                )
    return sorted(ids)


def _as_array(arm: Gains, *, ids: Sequence[str], name: str) -> "Floats":
    """Gains of one arm, seeds x examples; raises InputError where one is not finite."""
    import numpy as np

    gains_SE = np.array([[gains[key] for key in ids] for gains in arm], dtype=np.float64)
    wrong = np.argwhere(~np.isfinite(gains_SE))
    if wrong.size:
        number, example = (int(index) for index in wrong[0])
        raise InputError(
            f"arm {name}, seed {number + 1}: the gain of example {ids[example]!r} is {gains_SE[number, example]}. "
            "Did the model diverge? Measure it again."
        )
    return gains_SE

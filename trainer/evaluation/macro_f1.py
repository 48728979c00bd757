"""Macro-F1 of a classifier before and after on the same examples, and how sure its change is.

Pure functions of labels. Knows nothing of tasks, records, files or tensors.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from trainer.evaluation.statistics import EXACT_UNCHANGED, PairedDifference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Integers: TypeAlias = NDArray[np.int64]

# D draws, K kinds of example (distinct combinations of target and answers), C classes

PERCENTILE_OF_EXAMPLES = "percentile bootstrap of examples"

COUNTS_PER_BATCH = 250_000
"""Counts drawn at once, at most: 2 MB for each array of them."""


def macro_f1(targets: Sequence[str], answers: Sequence[str]) -> float:
    """Unweighted mean of F1_c = 2 TP / (2 TP + FP + FN) over the classes c that occur in targets or answers, in [0, 1].

    The `averaged F1` of the two formulas that go by the name (Opitz and Burst 2019, arXiv 1911.03347), and
    f1_score(average="macro") of scikit-learn: a class that is only in the targets or only in the answers counts 0.

    Raises:
        ValueError: no examples, or unequal lengths.
    """
    import numpy as np

    if not len(targets) == len(answers) > 0:
        raise ValueError(f"targets and answers need one length above 0: {len(targets)}, {len(answers)}")
    (targets_K, answers_K), counts_K = _tally(targets, answers)
    return float(_scores(counts_K[np.newaxis], targets_K=targets_K, answers_K=answers_K)[0])


def paired_macro_f1(
    targets: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_draws: int = 2_000,
) -> PairedDifference:
    """Macro-F1 before and after, and the percentile bootstrap interval of its difference; order has no effect.

    A draw takes whole examples, the same ones before and after (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13), and measures each side as `macro_f1` would: a class that a draw has neither
    as target nor as answer of that side has no F1, and is left out of that mean. Counted as 0, it would mark
    down a model that is always right, and rare classes would make the interval too narrow. It is still too
    narrow where a class has two or three examples: none can be drawn that the sample lacks. If no answer
    changed, the interval has width zero and `method` says so. It covers the choice of examples only, not the
    choice of training seed. Examples are taken to be independent.

    Raises:
        ValueError: fewer than 2 examples, unequal lengths, or a confidence outside (0, 1).
    """
    _check_inputs(targets, before=before, after=after, confidence=confidence)
    first, second = macro_f1(targets, before), macro_f1(targets, after)
    low, high, error, method = 0.0, 0.0, 0.0, EXACT_UNCHANGED
    if list(before) != list(after):
        low, high, error = _interval(
            targets, before=before, after=after, confidence=confidence, seed=seed, num_draws=num_draws
        )
        method = PERCENTILE_OF_EXAMPLES
    return PairedDifference(
        num_examples=len(targets),
        num_clusters=len(targets),
        before=first,
        after=second,
        difference=second - first,
        standard_error=error,
        interval_low=low,
        interval_high=high,
        method=method,
    )


def _check_inputs(targets: Sequence[str], *, before: Sequence[str], after: Sequence[str], confidence: float) -> None:
    """Refuse what no interval can be made of (ValueError)."""
    if not len(targets) == len(before) == len(after):
        raise ValueError(f"targets, before and after need one length each: {len(targets)}, {len(before)}, {len(after)}")
    if len(targets) < 2:
        raise ValueError(f"{len(targets)} example(s): an interval needs at least 2")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")


def _interval(
    targets: Sequence[str],
    *,
    before: Sequence[str],
    after: Sequence[str],
    confidence: float,
    seed: int,
    num_draws: int,
) -> tuple[float, float, float]:
    """Low and high end of the difference, and the standard deviation of the draws.

    How often each kind of example is drawn is multinomial: nothing is lost.
    """
    import numpy as np

    (targets_K, before_K, after_K), counts_K = _tally(targets, before, after)
    random = np.random.default_rng(seed)
    batch = max(1, COUNTS_PER_BATCH // counts_K.size)
    changes = []
    for start in range(0, num_draws, batch):
        counts_DK = random.multinomial(len(targets), counts_K / len(targets), size=min(batch, num_draws - start))
        old_D = _scores(counts_DK, targets_K=targets_K, answers_K=before_K)
        changes.append(_scores(counts_DK, targets_K=targets_K, answers_K=after_K) - old_D)
    tail = (1 - confidence) / 2
    drawn_D = np.concatenate(changes)
    low, high = np.quantile(drawn_D, [tail, 1 - tail])
    return float(low), float(high), float(drawn_D.std(ddof=1))


def _tally(*columns: Sequence[str]) -> tuple["Integers", "Integers"]:
    """Kinds of example in sorted order: class numbers of each (column by kind), and how often each occurs."""
    import numpy as np

    numbers = {label: number for number, label in enumerate(sorted({label for column in columns for label in column}))}
    tally = sorted(Counter(zip(*columns, strict=True)).items())
    kinds = [[numbers[label] for label in kind] for kind, _ in tally]
    return np.array(kinds, dtype=np.int64).T, np.array([count for _, count in tally], dtype=np.int64)


def _scores(counts_DK: "Integers", *, targets_K: "Integers", answers_K: "Integers") -> "Floats":
    """Macro-F1 of each draw. 2 TP + FP + FN of a class is how often it is a target plus how often it is an answer."""
    import numpy as np

    num_classes = 1 + int(max(targets_K.max(), answers_K.max()))
    right_K = targets_K == answers_K
    hits_DC = _sum_by_class(counts_DK[:, right_K], classes_K=targets_K[right_K], num_classes=num_classes)
    named_DC = _sum_by_class(counts_DK, classes_K=targets_K, num_classes=num_classes)
    named_DC += _sum_by_class(counts_DK, classes_K=answers_K, num_classes=num_classes)
    f1_DC = 2 * hits_DC / np.maximum(named_DC, 1)
    scores_D: Floats = f1_DC.sum(axis=1) / (named_DC > 0).sum(axis=1)
    return scores_D


def _sum_by_class(counts_DK: "Integers", *, classes_K: "Integers", num_classes: int) -> "Integers":
    """Examples of each class in each draw (D, C)."""
    import numpy as np

    order_K = np.argsort(classes_K, kind="stable")
    present, starts = np.unique(classes_K[order_K], return_index=True)
    sums_DC = np.zeros((len(counts_DK), num_classes), dtype=np.int64)
    sums_DC[:, present] = np.add.reduceat(counts_DK[:, order_K], starts, axis=1)
    return sums_DC

"""What became of each example: right before and wrong now, wrong before and right now, answered alike.

Accuracy hides both; so does a score near chance. Pure functions of numbers and texts; knows nothing
of records, files or tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from trainer.config.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """The same examples answered by two models, each right or wrong."""

    num_examples: int
    """Examples answered by both."""
    num_lost: int
    """n10: right before, wrong now."""
    num_gained: int
    """n01: wrong before, right now."""
    negative_flip_rate: float
    """n10 / n, share of all examples (Yan et al. 2021, Positive-Congruent Training)."""
    positive_flip_rate: float
    """n01 / n, share of all examples. Less `negative_flip_rate`, it is the change of accuracy."""
    conditional_forgetting: float | None
    """n10 / (n11 + n10): of what was right before, the share that is lost. None where nothing was right."""
    answer_agreement: float | None
    """Share of examples answered with the same text, right or wrong. None where an answer is missing."""


def count_flips(
    before: Sequence[float],
    after: Sequence[float],
    *,
    answers_before: Sequence[str | None] | None = None,
    answers_after: Sequence[str | None] | None = None,
) -> Flips:
    """Flips between two models' scores, 0 or 1, of the same examples in the same order.

    Raises:
        InputError: no example, unequal lengths, or a score other than 0 and 1.
    """
    num_examples = len(before)
    answers = [list(said) for said in (answers_before, answers_after) if said is not None]
    lengths = [len(before), len(after), *map(len, answers)]
    if num_examples == 0 or len(set(lengths)) > 1:
        raise InputError(
            f"flips: scores and answers of {', '.join(map(str, lengths))} examples. Both models must have answered "
            "the same examples, at least one: join the records by id first."
        )
    strange = sorted({score for score in (*before, *after) if score not in (0, 1)})
    if strange:
        raise InputError(
            f"flips: {len(strange)} kind(s) of score other than 0 and 1, such as {strange[0]}. Only right or wrong "
            "can flip: use the paired difference for graded scores."
        )
    pairs = list(zip(before, after, strict=True))
    num_lost, num_gained = pairs.count((1, 0)), pairs.count((0, 1))
    num_right_before = sum(old == 1 for old, _ in pairs)
    return Flips(
        num_examples=num_examples,
        num_lost=num_lost,
        num_gained=num_gained,
        negative_flip_rate=num_lost / num_examples,
        positive_flip_rate=num_gained / num_examples,
        conditional_forgetting=num_lost / num_right_before if num_right_before else None,
        answer_agreement=_agreement(*answers) if len(answers) == 2 else None,
    )


def _agreement(before: Sequence[str | None], after: Sequence[str | None]) -> float | None:
    """Share of pairs of the same text; None if any answer is missing, as the rest would be a chosen few."""
    if None in before or None in after:
        return None
    return sum(old == new for old, new in zip(before, after, strict=True)) / len(before)


def chance_normalised(score: float, chance: float) -> float:
    """(score - chance) / (1 - chance): 0 at chance, 1 if all is right, below 0 if worse than guessing.

    `chance` is the expected score of guessing, 1/k for k options: of a four-way choice, 0.60 -> 0.45 is 43 % of
    the ability lost and not 25 %. The form is Cohen's kappa (1960) with a fixed share of agreement by chance.

    Raises:
        InputError: a chance outside [0, 1), or a score that is not finite.
    """
    if not 0 <= chance < 1:
        raise InputError(f"chance: {chance} is no share of right guesses below 1. Give 1/k for k options, 0 for none.")
    if not math.isfinite(score):
        raise InputError(f"score: {score} is not finite. Look for nan or inf in the scores.")
    return (score - chance) / (1 - chance)


def retention(before: float, after: float, *, chance: float, before_interval_low: float) -> float | None:
    """Share of an ability that is left: chance-normalised score after / before. 1: all of it; above 1: it grew.

    None, "base at chance", unless the interval of `before` lies above chance: there was no ability to lose.

    Raises:
        InputError: an interval that begins above `before`, or what `chance_normalised` refuses.
    """
    if before_interval_low > before:
        raise InputError(
            f"retention: the interval of the score before begins at {before_interval_low}, above the score, {before}. "
            "Give both of the same examples."
        )
    had, has = chance_normalised(before, chance), chance_normalised(after, chance)
    return has / had if before_interval_low > chance else None


def binomial_interval(successes: int, num_examples: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Low and high end of the Wilson (1927) score interval of a share of independent successes.

    Never of width zero, so that 40 right of 40 is not taken for certain.

    Raises:
        InputError: no example, successes outside [0, num_examples], or a confidence outside (0, 1).
    """
    if not 0 <= successes <= num_examples or num_examples == 0:
        raise InputError(
            f"interval of a share: {successes} of {num_examples}. Give successes among at least 1 example."
        )
    if not 0 < confidence < 1:
        raise InputError(f"confidence: {confidence} does not lie between 0 and 1. Give 0.95 for a 95 % interval.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / num_examples, z * z / num_examples
    centre = (share + spread / 2) / (1 + spread)
    half_width = z / (1 + spread) * math.sqrt((share * (1 - share) + spread / 4) / num_examples)
    low = 0.0 if successes == 0 else centre - half_width  # exact ends: rounding would leave 1e-17
    high = 1.0 if successes == num_examples else centre + half_width
    return low, high

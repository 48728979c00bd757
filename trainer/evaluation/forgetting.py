"""From per-example records before and after training to one row a measure.

Knows nothing of models, tensors or how a score was made.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import NormalDist
from typing import Any

from trainer.evaluation.capability_row import MACRO_F1, CapabilityRow, Change, LostExample, TaskDescription
from trainer.evaluation.flips import Flips, binomial_interval, count_flips, retention
from trainer.evaluation.join import Pair, join, refuse
from trainer.evaluation.macro_f1 import paired_macro_f1
from trainer.evaluation.power import minimal_detectable_effect, num_examples_for_margin
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.significance import mcnemar_mid_p, sign_flip_p
from trainer.evaluation.statistics import PairedDifference, mcnemar_exact, paired_difference

MAX_LOST_EXAMPLES = 200
"""Lost examples kept in a row; the counts are of all of them."""

EXACT_MCNEMAR = "exact McNemar"
SIGN_FLIPS = "sign-flip permutation"
SIGN_FLIPS_OF_CLUSTERS = "sign-flip permutation of clusters"
NORMAL_APPROXIMATION = "normal approximation"


def compare_task(
    description: TaskDescription,
    before: Sequence[ExampleRecord],
    after: Sequence[ExampleRecord],
    *,
    null: Sequence[ExampleRecord] | None = None,
    identical: bool = False,
) -> CapabilityRow:
    """Join the records of one task by id and measure the change; the order of the records has no effect.

    Args:
        null: the base again, in other batches: what flips between it and `before` is the floor of all flips.
        identical: both models gave the same outputs on everything that was measured, so the difference is none.

    Raises:
        JoinError: see `join`; scores outside [0, 1], or a classifier's score that does not say whether its answer is
            the target.
    """
    pairs = join(description.name, before=before, after=after)
    _check_scores(description, pairs)
    binary = description.kind != "text" and all(one.value in (0, 1) for pair in pairs for one in pair)
    measured = _measure(description, pairs, binary=binary, identical=identical)
    p_value, p_method = _significance(description, pairs, measured, binary=binary)
    has_scores = description.kind != "text" and description.measure != MACRO_F1
    return CapabilityRow(
        **asdict(description),
        num_examples=measured.num_examples,
        num_clusters=measured.num_clusters,
        num_units=sum(old.weight for old, _ in pairs),
        before=measured.before,
        after=measured.after,
        difference=measured.difference,
        interval_low=measured.interval_low,
        interval_high=measured.interval_high,
        interval_method=measured.method,
        standard_error=measured.standard_error,
        minimal_detectable_effect=minimal_detectable_effect(measured.standard_error),
        num_examples_needed=num_examples_for_margin(measured.standard_error, measured.num_examples, description.margin),
        change=_change(measured, higher_is_better=description.higher_is_better),
        p_value=p_value,
        p_method=p_method,
        mid_p=_mid_p(pairs) if p_method == EXACT_MCNEMAR else None,
        **(_flip_fields(pairs, null=null) if has_scores and binary else {}),
        **(_score_fields(description, pairs, measured) if has_scores else {}),
        **(_text_fields(pairs) if description.kind == "text" else {}),
        lost=_lost_examples(description, pairs) if has_scores else (),
    )


def _check_scores(description: TaskDescription, pairs: Sequence[Pair]) -> None:
    name, both = description.name, [one for pair in pairs for one in pair]
    if description.kind != "text":
        outside = {one.id for one in both if not 0 <= one.value <= 1 or one.weight != 1}
        refuse(outside, name=name, what="are not scores in [0, 1] with weight 1", advice="Correct the scorer")
    if description.kind == "classify":
        unfit = {one.id for one in both if one.answer is None or one.value != (one.answer == one.target)}
        refuse(unfit, name=name, what="lack an answer scored 1 if right and 0 if not", advice="Correct the scorer")


def _clusters(pairs: Sequence[Pair]) -> list[str] | None:
    """The cluster of each example; None where each stands alone."""
    if all(old.cluster is None for old, _ in pairs):
        return None
    return [f"example {old.id}" if old.cluster is None else f"cluster {old.cluster}" for old, _ in pairs]


def _measure(description: TaskDescription, pairs: Sequence[Pair], *, binary: bool, identical: bool) -> PairedDifference:
    """Macro-F1 of targets and answers, or the ratio of summed values and weights."""
    old, new = [first for first, _ in pairs], [second for _, second in pairs]
    if description.measure == MACRO_F1:
        said = [[one.answer for one in side if one.answer is not None] for side in (old, new)]
        return paired_macro_f1([one.target for one in old], said[0], said[1])
    return paired_difference(
        [one.value for one in old],
        [one.value for one in new],
        weights=None if binary else [one.weight for one in old],
        clusters=_clusters(pairs),
        binary=binary,
        identical=identical,
    )


def _significance(
    description: TaskDescription, pairs: Sequence[Pair], measured: PairedDifference, *, binary: bool
) -> tuple[float, str]:
    """Two-sided p of no change, and the test."""
    if description.measure == MACRO_F1:
        return _normal_p(measured), NORMAL_APPROXIMATION
    changes, clusters = [new.value - old.value for old, new in pairs], _clusters(pairs)
    if binary and clusters is None:
        return mcnemar_exact(
            sum(change < 0 for change in changes), sum(change > 0 for change in changes)
        ), EXACT_MCNEMAR
    return sign_flip_p(changes, clusters=clusters), SIGN_FLIPS if clusters is None else SIGN_FLIPS_OF_CLUSTERS


def _mid_p(pairs: Sequence[Pair]) -> float:
    flips = _flips(pairs)
    return mcnemar_mid_p(flips.num_lost, flips.num_gained)


def _normal_p(measured: PairedDifference) -> float:
    if measured.standard_error == 0:
        return float(measured.difference == 0)
    return 2 * NormalDist().cdf(-abs(measured.difference) / measured.standard_error)


def _change(measured: PairedDifference, *, higher_is_better: bool) -> Change:
    """Improved or worsened if the interval excludes zero; otherwise nothing is shown either way."""
    if measured.interval_low <= 0 <= measured.interval_high:
        return "no clear change"
    return "improved" if (measured.interval_low > 0) == higher_is_better else "worsened"


def _flips(pairs: Sequence[Pair]) -> Flips:
    old, new = [first for first, _ in pairs], [second for _, second in pairs]
    return count_flips(
        [one.value for one in old],
        [one.value for one in new],
        answers_before=[one.answer for one in old],
        answers_after=[one.answer for one in new],
    )


def _flip_fields(pairs: Sequence[Pair], *, null: Sequence[ExampleRecord] | None) -> dict[str, Any]:
    flips, rate = _flips(pairs), None
    if null is not None:
        floor = _flips(join("null flips", before=[old for old, _ in pairs], after=null))
        rate = (floor.num_lost + floor.num_gained) / floor.num_examples
    return {
        "num_lost": flips.num_lost,
        "num_gained": flips.num_gained,
        "conditional_forgetting": flips.conditional_forgetting,
        "answer_agreement": flips.answer_agreement,
        "null_flip_rate": rate,
    }


def _score_fields(description: TaskDescription, pairs: Sequence[Pair], measured: PairedDifference) -> dict[str, Any]:
    chances = [1 / len(old.candidate_nats) if old.candidate_nats else 0.0 for old, _ in pairs]
    if description.kind == "classify":
        chances = [1 / len({old.target for old, _ in pairs})] * len(pairs)
    chance = sum(chances) / len(chances)
    low, _ = binomial_interval(int(sum(old.value for old, _ in pairs)), len(pairs))
    generates = description.kind == "generate"
    return {
        "chance": chance,
        "retention": retention(measured.before, measured.after, chance=chance, before_interval_low=low),
        "num_unparsed_before": sum(not old.is_parsed for old, _ in pairs) if generates else None,
        "num_unparsed_after": sum(not new.is_parsed for _, new in pairs) if generates else None,
    }


def _text_fields(pairs: Sequence[Pair]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if all(old.num_bytes for old, _ in pairs):
        num_bytes = sum(old.num_bytes or 0 for old, _ in pairs)
        for side, when in enumerate(("before", "after")):
            fields[f"bits_per_byte_{when}"] = sum(pair[side].value for pair in pairs) / (math.log(2) * num_bytes)
    compared = [new for _, new in pairs if new.kl_nats is not None]
    if compared:
        num_tokens = sum(one.weight for one in compared)
        fields["kl_nats_per_token"] = sum(one.kl_nats or 0.0 for one in compared) / num_tokens
        fields["top1_agreement"] = sum(one.num_agreeing_tokens or 0 for one in compared) / num_tokens
    return fields


def _lost_examples(description: TaskDescription, pairs: Iterable[Pair]) -> tuple[LostExample, ...]:
    """The largest falls, then by id."""
    sign = 1 if description.higher_is_better else -1
    gains = ((sign * (new.value - old.value), old.id, old, new) for old, new in pairs)
    falls = sorted((gain, key, old, new) for gain, key, old, new in gains if gain < 0)
    return tuple(
        LostExample(prompt=old.prompt, target=old.target, answer_before=old.answer, answer_after=new.answer)
        for _, _, old, new in falls[:MAX_LOST_EXAMPLES]
    )

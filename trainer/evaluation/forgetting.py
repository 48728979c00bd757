"""From per-example records before and after training to one row a capability.

The same examples, prompts and scorer on both sides, joined by id; anything else is
refused, because a difference between unlike things is not forgetting. Knows nothing of
models, tensors or how a score was made.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Literal, TypeAlias

from trainer.config.errors import InputError
from trainer.evaluation.macro_f1 import paired_macro_f1
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.statistics import PairedDifference, mcnemar_exact, paired_difference

Group: TypeAlias = Literal["trained", "base"]
Kind: TypeAlias = Literal["text", "choice", "generate", "classify"]
Change: TypeAlias = Literal["improved", "worsened", "no clear change"]

MACRO_F1 = "macro-F1"
"""Measure of kind classify that is of all examples together, where accuracy is a mean over examples."""

MAX_LOST_EXAMPLES = 20
"""Lost examples kept in a row; the counts are of all of them."""

MAX_IDS_IN_MESSAGE = 5
"""Ids named in an error; the count is of all of them."""


class JoinError(InputError):
    """Records before and after are not of the same examples, prompts and scorer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDescription:
    """What a task measures, and how to read its numbers."""

    name: str
    """Unique name; also the name of its records file, except where another row has the same records."""
    capability: str
    """What it is a measure of, in words for the reader."""
    group: Group
    """`trained`: a task of the mixture; `base`: an ability from before, never trained on."""
    kind: Kind
    """`text`: loss of given text; `choice`: pick among options; `generate`: answer freely;
    `classify`: pick one of fixed labels with a classification head."""
    measure: str
    """Name of the number: loss, accuracy, exact match, chrF; of kind classify: accuracy or macro-F1."""
    unit: str
    """Unit of the number: nats/token, share."""
    higher_is_better: bool
    """False for a loss."""

    def __post_init__(self) -> None:
        fits = self.measure in ("accuracy", MACRO_F1) if self.kind == "classify" else self.measure != MACRO_F1
        if not fits:
            raise ValueError(f"task {self.name}: kind {self.kind} has no measure {self.measure!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LostExample:
    """An example that the model did better before training than after."""

    prompt: str
    """What the model was given."""
    target: str
    """What it should have said."""
    answer_before: str | None
    """What it said before training."""
    answer_after: str | None
    """What it says now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityRow:
    """One task before and after, with its interval and what was lost. The first seven fields: `TaskDescription`."""

    name: str
    capability: str
    group: Group
    kind: Kind
    measure: str
    unit: str
    higher_is_better: bool
    num_examples: int
    """Examples joined."""
    before: float
    """The measure before training, in `unit`."""
    after: float
    """The measure after training, in `unit`."""
    difference: float
    """after - before, in `unit`."""
    interval_low: float
    """Lower end of the 95 % interval of `difference`."""
    interval_high: float
    """Upper end of the 95 % interval of `difference`."""
    interval_method: str
    """How the interval was made."""
    change: Change
    """Which way, if the interval excludes zero. `no clear change` means not shown: it is never evidence of no
    forgetting, since with few examples a large loss can hide inside the interval."""
    num_lost: int | None
    """Right before, wrong now. None unless every score is 0 or 1; None for macro-F1, as the accuracy row has it."""
    num_gained: int | None
    """Wrong before, right now. None where `num_lost` is."""
    mcnemar_p: float | None
    """Exact two-sided McNemar p of lost against gained. None where `num_lost` is."""
    lost: tuple[LostExample, ...]
    """Up to 20 examples whose score fell, largest fall first, then by id. Empty for kind text and for macro-F1."""


def compare_task(
    description: TaskDescription, before: Sequence[ExampleRecord], after: Sequence[ExampleRecord]
) -> CapabilityRow:
    """Join the records of one task by id and measure the change; the order of the records has no effect.

    Raises:
        JoinError: fewer than 2 examples, a repeated id, scores outside [0, 1], a classifier's score that does not
            say whether its answer is the target, or any difference in ids, prompts, targets, scorers or weights.
    """
    pairs = _join(description, before=before, after=after)
    measured = _measure(description, pairs)
    has_scores = description.kind != "text" and description.measure != MACRO_F1
    sign = 1 if description.higher_is_better else -1
    gains = [(sign * (new.value - old.value), old, new) for old, new in pairs]
    num_lost = num_gained = mcnemar_p = None
    if has_scores and all(record.value in (0, 1) for pair in pairs for record in pair):
        num_lost = sum(gain < 0 for gain, _, _ in gains)
        num_gained = sum(gain > 0 for gain, _, _ in gains)
        mcnemar_p = mcnemar_exact(num_lost, num_gained)
    return CapabilityRow(
        **asdict(description),
        num_examples=measured.num_examples,
        before=measured.before,
        after=measured.after,
        difference=measured.difference,
        interval_low=measured.interval_low,
        interval_high=measured.interval_high,
        interval_method=measured.method,
        change=_change(measured, higher_is_better=description.higher_is_better),
        num_lost=num_lost,
        num_gained=num_gained,
        mcnemar_p=mcnemar_p,
        lost=_lost_examples(gains) if has_scores else (),
    )


def _measure(description: TaskDescription, pairs: Sequence[tuple[ExampleRecord, ExampleRecord]]) -> PairedDifference:
    """Macro-F1 of targets and answers, or the ratio of summed values and weights."""
    old, new = [first for first, _ in pairs], [second for _, second in pairs]
    if description.measure == MACRO_F1:
        said = [[one.answer for one in side if one.answer is not None] for side in (old, new)]
        return paired_macro_f1([one.target for one in old], said[0], said[1])
    weights = [one.weight for one in old]
    return paired_difference([one.value for one in old], [one.value for one in new], weights=weights)


def _change(measured: PairedDifference, *, higher_is_better: bool) -> Change:
    """Improved or worsened if the interval excludes zero; otherwise nothing is shown either way."""
    if measured.interval_low <= 0 <= measured.interval_high:
        return "no clear change"
    return "improved" if (measured.interval_low > 0) == higher_is_better else "worsened"


def _lost_examples(gains: Iterable[tuple[float, ExampleRecord, ExampleRecord]]) -> tuple[LostExample, ...]:
    """The largest falls, then by id."""
    falls = sorted((gain, old.id, old, new) for gain, old, new in gains if gain < 0)
    return tuple(
        LostExample(prompt=old.prompt, target=old.target, answer_before=old.answer, answer_after=new.answer)
        for _, _, old, new in falls[:MAX_LOST_EXAMPLES]
    )


def _join(
    description: TaskDescription, *, before: Sequence[ExampleRecord], after: Sequence[ExampleRecord]
) -> list[tuple[ExampleRecord, ExampleRecord]]:
    """Pairs of the same example, sorted by id; raises JoinError on anything that does not match."""
    name = description.name
    old = _by_id(before, name=name, when="before")
    new = _by_id(after, name=name, when="after")
    again = "Measure both models again on the same data"
    _refuse(old.keys() - new.keys(), name=name, what="are only in the records before training", advice=again)
    _refuse(new.keys() - old.keys(), name=name, what="are only in the records after training", advice=again)
    pairs = [(old[key], new[key]) for key in sorted(old)]
    for field, advice in (
        ("prompt_sha256", "The data or the prompt template changed: measure both models again with the same one"),
        ("target", "The data changed: measure both models again on the same data"),
        ("scorer", "Scorers and their versions are not comparable: measure both models again with the same one"),
        ("weight", "The text or the tokenizer changed: measure both models again with the same one"),
    ):
        value_of = attrgetter(field)
        differing = [first.id for first, second in pairs if value_of(first) != value_of(second)]
        _refuse(differing, name=name, what=f"differ in {field} before and after", advice=advice)
    both = [one for pair in pairs for one in pair]
    if description.kind != "text":
        outside = {one.id for one in both if not 0 <= one.value <= 1 or one.weight != 1}
        _refuse(outside, name=name, what="are not scores in [0, 1] with weight 1", advice="Correct the scorer")
    if description.kind == "classify":
        unfit = {one.id for one in both if one.answer is None or one.value != (one.answer == one.target)}
        _refuse(unfit, name=name, what="lack an answer scored 1 if right and 0 if not", advice="Correct the scorer")
    if len({first.scorer for first, _ in pairs}) > 1:
        raise JoinError(f"task {name}: several scorers in one task. Give each scorer a task of its own.")
    if len(pairs) < 2:
        raise JoinError(f"task {name}: {len(pairs)} example(s), an interval needs at least 2. Add examples.")
    return pairs


def _by_id(records: Sequence[ExampleRecord], *, name: str, when: str) -> dict[str, ExampleRecord]:
    """Records by id; raises JoinError on a repeated id."""
    repeated = [key for key, count in Counter(record.id for record in records).items() if count > 1]
    _refuse(repeated, name=name, what=f"occur more than once {when} training", advice="Give each example its own id")
    return {record.id: record for record in records}


def _refuse(ids: Iterable[str], *, name: str, what: str, advice: str) -> None:
    """Raise JoinError in one line if there are any such ids."""
    ordered = sorted(ids)
    if not ordered:
        return
    shown = ", ".join(repr(key) for key in ordered[:MAX_IDS_IN_MESSAGE])
    more = f" and {len(ordered) - MAX_IDS_IN_MESSAGE} more" if len(ordered) > MAX_IDS_IN_MESSAGE else ""
    raise JoinError(f"task {name}: {len(ordered)} id(s) {what}: {shown}{more}. {advice}.")

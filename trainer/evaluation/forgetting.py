"""From per-example records before and after training to one row a capability.

The same examples, prompts and scorer on both sides, joined by id; anything else is
refused, because a difference between unlike things is not forgetting. Knows nothing of
models, tensors or how a score was made.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Literal, TypeAlias

from trainer.config.errors import DataError, InputError
from trainer.config.run_folder import write_text_atomically
from trainer.evaluation.statistics import PairedDifference, mcnemar_exact, paired_difference

Group: TypeAlias = Literal["trained", "base"]
Kind: TypeAlias = Literal["text", "choice", "generate"]
Change: TypeAlias = Literal["improved", "worsened", "no clear change"]

MAX_LOST_EXAMPLES = 20
"""Lost examples kept in a row; the counts are of all of them."""

MAX_IDS_IN_MESSAGE = 5
"""Ids named in an error; the count is of all of them."""


class JoinError(InputError):
    """Records before and after are not of the same examples, prompts and scorer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRecord:
    """How one model did on one example."""

    id: str
    """Unique within the task; the key of the join."""
    prompt_sha256: str
    """Hash of exactly what the model was given."""
    scorer: str
    """Name and version of the scorer: `token_nll@1`, `exact_match@1`."""
    value: float
    """kind text: summed nats over the tokens; otherwise a score in [0, 1]."""
    weight: float
    """kind text: number of tokens; otherwise 1."""
    prompt: str
    """What the model was given, readable."""
    target: str
    """What it should have said; may be empty for kind text."""
    answer: str | None
    """What it said; None where nothing is said."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(
                f"example {self.id!r}: value is {self.value}, which cannot be compared; did the model diverge?"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"example {self.id!r}: weight is {self.weight}, a positive number is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDescription:
    """What a task measures, and how to read its numbers."""

    name: str
    """Unique name; also the name of its records file."""
    capability: str
    """What it is a measure of, in words for the reader."""
    group: Group
    """`trained`: a task of the mixture; `base`: an ability from before, never trained on."""
    kind: Kind
    """`text`: loss of given text; `choice`: pick among options; `generate`: answer freely."""
    measure: str
    """Name of the number: loss, accuracy, exact match, chrF."""
    unit: str
    """Unit of the number: nats/token, share."""
    higher_is_better: bool
    """False for a loss."""


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
    """Right before, wrong now. None unless every score is 0 or 1."""
    num_gained: int | None
    """Wrong before, right now. None unless every score is 0 or 1."""
    mcnemar_p: float | None
    """Exact two-sided McNemar p of lost against gained. None unless every score is 0 or 1."""
    lost: tuple[LostExample, ...]
    """Up to 20 examples whose score fell, largest fall first, then by id. Empty for kind text."""


def write_records(path: Path, records: Iterable[ExampleRecord]) -> None:
    """Write one JSON object a line, sorted by id: the same records give the same bytes. Atomic."""
    ordered = sorted(records, key=attrgetter("id"))
    # Escaped to ASCII: a model's answer may hold a lone surrogate, which UTF-8 cannot.
    lines = [json.dumps(asdict(record), allow_nan=False) + "\n" for record in ordered]
    write_text_atomically(path, "".join(lines))


def read_records(path: Path) -> list[ExampleRecord]:
    """Read the records of one task, in the order of the file.

    Raises:
        DataError: the file is missing, or a line is not a record.
    """
    try:
        with path.open("rb") as lines:
            return [_parse_record(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Was this task evaluated at this step?") from None


def compare_task(
    description: TaskDescription, before: Sequence[ExampleRecord], after: Sequence[ExampleRecord]
) -> CapabilityRow:
    """Join the records of one task by id and measure the change; the order of the records has no effect.

    Raises:
        JoinError: fewer than 2 examples, a repeated id, scores outside [0, 1], or any difference in ids,
            prompts, targets, scorers or weights.
    """
    pairs = _join(description, before=before, after=after)
    measured = paired_difference(
        [old.value for old, _ in pairs], [new.value for _, new in pairs], weights=[old.weight for old, _ in pairs]
    )
    sign = 1 if description.higher_is_better else -1
    gains = [(sign * (new.value - old.value), old, new) for old, new in pairs]
    num_lost = num_gained = mcnemar_p = None
    if description.kind != "text" and all(record.value in (0, 1) for pair in pairs for record in pair):
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
        lost=() if description.kind == "text" else _lost_examples(gains),
    )


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
    if description.kind != "text":
        outside = [one.id for pair in pairs for one in pair if not 0 <= one.value <= 1 or one.weight != 1]
        _refuse(set(outside), name=name, what="are not scores in [0, 1] with weight 1", advice="Correct the scorer")
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


def _parse_record(line: bytes, *, where: str) -> ExampleRecord:
    """One record from one line of JSON; raises DataError naming file and line."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). The file is damaged: evaluate this task again.") from None
    keys = [field.name for field in fields(ExampleRecord)]
    if not isinstance(raw, dict) or set(raw) != set(keys):
        raise DataError(f"{where}: not a record. Exactly these keys are needed: {', '.join(keys)}.")
    numbers, texts = ("value", "weight"), ("id", "prompt_sha256", "scorer", "prompt", "target")
    wrong = [key for key in numbers if not isinstance(raw[key], int | float) or isinstance(raw[key], bool)]
    wrong += [key for key in texts if not isinstance(raw[key], str)]
    wrong += ["answer"] if not isinstance(raw["answer"], str | None) else []
    if wrong:
        raise DataError(f"{where}: wrong type of {', '.join(wrong)}. {', '.join(numbers)}: number; the others: text.")
    try:
        return ExampleRecord(**raw)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None

"""Records before and after, joined by id: the same examples, prompts and scorer on both sides, or nothing.

A difference between unlike things is not forgetting, so anything that does not match is refused.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TypeAlias

from trainer.config.errors import InputError
from trainer.evaluation.records import ExampleRecord

Pair: TypeAlias = tuple[ExampleRecord, ExampleRecord]

MAX_IDS_IN_MESSAGE = 5
"""Ids named in an error; the count is of all of them."""

AGAIN = "Measure both models again on the same data"
MUST_AGREE = (
    ("prompt_sha256", "The data or the prompt template changed: measure both models again with the same one"),
    ("target", "The data changed: measure both models again on the same data"),
    ("scorer", "Scorers and their versions are not comparable: measure both models again with the same one"),
    ("weight", "The text or the tokenizer changed: measure both models again with the same one"),
    ("cluster", "The data changed: measure both models again on the same data"),
)
OUTPUTS = attrgetter("value", "answer", "candidate_nats", "is_parsed")


class JoinError(InputError):
    """Records before and after are not of the same examples, prompts and scorer."""


def join(name: str, *, before: Sequence[ExampleRecord], after: Sequence[ExampleRecord]) -> list[Pair]:
    """Pairs of the same example, sorted by id.

    Raises:
        JoinError: fewer than 2 examples, a repeated id, or a difference in ids, prompts, targets, scorers, weights or
            clusters.
    """
    old = _by_id(before, name=name, when="before")
    new = _by_id(after, name=name, when="after")
    refuse(old.keys() - new.keys(), name=name, what="are only in the records before training", advice=AGAIN)
    refuse(new.keys() - old.keys(), name=name, what="are only in the records after training", advice=AGAIN)
    pairs = [(old[key], new[key]) for key in sorted(old)]
    for field, advice in MUST_AGREE:
        value_of = attrgetter(field)
        differing = [first.id for first, second in pairs if value_of(first) != value_of(second)]
        refuse(differing, name=name, what=f"differ in {field} before and after", advice=advice)
    if len({first.scorer for first, _ in pairs}) > 1:
        raise JoinError(f"task {name}: several scorers in one task. Give each scorer a task of its own.")
    if len(pairs) < 2:
        raise JoinError(f"task {name}: {len(pairs)} example(s), an interval needs at least 2. Add examples.")
    return pairs


def same_outputs(pairs: Iterable[Pair]) -> bool:
    """Whether both sides gave the very same numbers and answers, not only the same scores."""
    return all(OUTPUTS(old) == OUTPUTS(new) for old, new in pairs)


def refuse(ids: Iterable[str], *, name: str, what: str, advice: str) -> None:
    """Raise JoinError in one line if there are any such ids."""
    ordered = sorted(ids)
    if not ordered:
        return
    shown = ", ".join(repr(key) for key in ordered[:MAX_IDS_IN_MESSAGE])
    more = f" and {len(ordered) - MAX_IDS_IN_MESSAGE} more" if len(ordered) > MAX_IDS_IN_MESSAGE else ""
    raise JoinError(f"task {name}: {len(ordered)} id(s) {what}: {shown}{more}. {advice}.")


def _by_id(records: Sequence[ExampleRecord], *, name: str, when: str) -> dict[str, ExampleRecord]:
    """Records by id; raises JoinError on a repeated id."""
    repeated = [key for key, count in Counter(record.id for record in records).items() if count > 1]
    refuse(repeated, name=name, what=f"occur more than once {when} training", advice="Give each example its own id")
    return {record.id: record for record in records}

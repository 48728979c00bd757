"""All rows of a comparison: every task of a measurement, before and after."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from trainer.evaluation.capability_row import CapabilityRow, TaskDescription
from trainer.evaluation.forgetting import compare_task
from trainer.evaluation.join import join, same_outputs
from trainer.evaluation.records import ExampleRecord

Records: TypeAlias = Mapping[str, Sequence[ExampleRecord]]
"""By task."""


def compare_all(
    descriptions: Mapping[str, Iterable[TaskDescription]], *, before: Records, after: Records, null: Records
) -> list[CapabilityRow]:
    """One row for each description of each task, in their order.

    Args:
        descriptions: by task, each of whose rows reads the same records.
        null: the base again in other batches, where that was measured.

    Raises:
        JoinError: records before and after are not of the same examples, prompts and scorer.
    """
    identical = all(same_outputs(join(name, before=before[name], after=after[name])) for name in descriptions)
    return [
        compare_task(description, before[name], after[name], null=null.get(name), identical=identical)
        for name, several in descriptions.items()
        for description in several
    ]


def part_of(records: Sequence[ExampleRecord], measured: Sequence[ExampleRecord]) -> list[ExampleRecord]:
    """The records of the examples that were measured, where that is a part of them."""
    wanted = {record.id for record in measured}
    return [record for record in records if record.id in wanted]

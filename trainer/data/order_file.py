"""What was really trained on: each rank notes the examples of its micro-batches, the main one puts the notes in order.

The file says nothing of ranks: runs on 1, 2 and 4 of them write the same one.
"""

import csv
import heapq
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from trainer.config.run_folder import RunFolder, write_text_atomically
from trainer.data.collate import Batch
from trainer.data.order import Order
from trainer.data.stream import TrainingTask

HEADER = ("step", "task", "example_id")
Note = tuple[int, int, str, str]
"""(step, position, task, id of the example)."""


class OrderNotes:
    """The notes of one rank."""

    def __init__(
        self, folder: RunFolder, *, rank: int, first_step: int, order: Order, tasks: Sequence[TrainingTask]
    ) -> None:
        """Go on after `first_step` completed steps: what an interrupted run noted beyond them is removed."""
        self._order, self._tasks = order, tasks
        path = folder.order_notes(rank)
        kept = [note for note in _read(path) if note[0] <= first_step] if path.exists() and first_step else []
        write_text_atomically(path, "")
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerows(kept)

    def add(self, step: int, batches: Sequence[Batch]) -> None:
        """What this rank trains on in optimizer step `step` (from 0; steps are noted from 1)."""
        for position in sorted(position for batch in batches for position in batch.positions):
            draw = self._order.draw(position)
            task = self._tasks[draw.task]
            self._writer.writerow((step + 1, position, task.name, task.example_id(draw.index)))
        self._file.flush()

    def close(self) -> None:
        """No more steps."""
        self._file.close()


def merge_notes(folder: RunFolder, *, world_size: int, num_steps: int) -> None:
    """Write order.csv from the notes of all ranks, up to `num_steps` completed steps; one step at a time in memory."""
    ranks = [_read(folder.order_notes(rank)) for rank in range(world_size)]
    by_step = groupby(heapq.merge(*ranks), key=lambda note: note[0])  # each rank's notes are in order
    part = folder.order.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for step, notes in by_step:
            if step <= num_steps:
                writer.writerows((step, task, example_id) for _, _, task, example_id in notes)
    part.replace(folder.order)


def _read(path: Path) -> Iterator[Note]:
    with path.open(encoding="utf-8", newline="") as file:
        for step, position, task, example_id in csv.reader(file):
            yield int(step), int(position), task, example_id

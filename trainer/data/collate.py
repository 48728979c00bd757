"""The micro-batches of one optimizer step on one rank. Shapes: B rows, T tokens.

Which examples make up a step never depends on the layout; how they are dealt to
ranks and micro-batches does, and changes no sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.data.order import Order
from trainer.data.packing import pack
from trainer.data.stream import TrainingTask
from trainer.data.tokenize import TokenizedExample
from trainer.loss import IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows, of one example each or of several."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    """1 where there is an example."""

    targets_BT: Tensor
    """What the logits at the same position must give: the next token, IGNORED where it carries no loss. A classifier's
    logits have one position, and its target is the class."""

    tasks_BT: Tensor
    """Task of each target, in the shape of the targets."""

    segments_BT: Tensor | None = None
    """Packed rows: number of the example in its row, from 0; -1 where there is none."""

    position_ids_BT: Tensor | None = None
    """Packed rows: place of the token in its example, from 0. Padding counts on from 0 too."""

    positions: tuple[int, ...] = ()
    """Of its examples in the order of the run; nothing for the fillers that keep ranks in step."""

    num_tokens: int = 0
    """Of these examples, prompts included."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device),
            attention_mask_BT=self.attention_mask_BT.to(device),
            targets_BT=self.targets_BT.to(device),
            tasks_BT=self.tasks_BT.to(device),
            segments_BT=None if self.segments_BT is None else self.segments_BT.to(device),
            position_ids_BT=None if self.position_ids_BT is None else self.position_ids_BT.to(device),
        )


@dataclass(frozen=True, slots=True)
class Item:
    """An example with its task, at its position in the run's order; no position if it only fills up."""

    example: TokenizedExample
    task: int = 0
    position: int | None = None

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.example.input_ids)


def collate(
    rows: Sequence[Sequence[Item]], *, pad_token_id: int, width: int | None = None, packed: bool = False
) -> Batch:
    """Put the examples of each row one after the other and pad to `width` tokens, or to the longest row.

    Nothing predicts the first token of an example: neither does the last one of the example before it.

    Args:
        packed: say where examples begin and end, so that none sees another. Otherwise a row is one example.
    """
    width = width or max(sum(item.length for item in row) for row in rows)
    shape = (len(rows), width)
    input_ids_BT = np.full(shape, pad_token_id, dtype=np.int64)
    targets_BT = np.full(shape, IGNORED, dtype=np.int64)
    tasks_BT = np.zeros(shape, dtype=np.int64)
    segments_BT = np.full(shape, -1, dtype=np.int64)
    position_ids_BT = np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for segment, item in enumerate(row):
            ids, end = item.example.input_ids, start + item.length
            input_ids_BT[number, start:end] = ids
            tasks_BT[number, start:end] = item.task
            segments_BT[number, start:end] = segment
            position_ids_BT[number, start:end] = np.arange(item.length)
            for first, last in item.example.spans:
                first = max(1, first)
                targets_BT[number, start + first - 1 : start + last - 1] = ids[first:last]
            start = end
        position_ids_BT[number, start:] = np.arange(width - start)
    if any(item.example.label is not None for row in rows for item in row):
        targets_BT = np.array([[row[0].example.label] for row in rows])
        tasks_BT = tasks_BT[:, :1]
    return Batch(
        torch.from_numpy(input_ids_BT),
        torch.from_numpy((segments_BT >= 0).astype(np.int64)),
        torch.from_numpy(targets_BT),
        torch.from_numpy(tasks_BT),
        segments_BT=torch.from_numpy(segments_BT) if packed else None,
        position_ids_BT=torch.from_numpy(position_ids_BT) if packed else None,
        positions=tuple(item.position for row in rows for item in row if item.position is not None),
        num_tokens=sum(item.length for row in rows for item in row if item.position is not None),
    )


class StepBatches:
    """Micro-batches by step, for one rank."""

    def __init__(
        self,
        *,
        tasks: Sequence[TrainingTask],
        order: Order,
        rows_per_microbatch: int,
        rank: int,
        world_size: int,
        pad_token_id: int,
        row_tokens: int | None = None,
        width: int | None = None,
    ) -> None:
        """Nothing is read until a step is asked for.

        Args:
            row_tokens: pack examples into rows of so many tokens; without it a row is one example.
            width: tokens that every row is padded to.
        """
        self._tasks, self._order, self._pad_token_id = tasks, order, pad_token_id
        self._size, self._row_tokens, self._width = rows_per_microbatch, row_tokens, width
        self._rank, self._world_size = rank, world_size

    def at(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step` (from 0), as many as every other rank has.

        Rows are sorted by length and cut into micro-batches, dealt to the ranks in turn: little padding, and the ranks
        that wait for each other work on similar lengths. Where they do not go round, a micro-batch that only fills up,
        and carries no loss, keeps a rank in step.
        """
        rows = self._rows(self._order.positions(step))
        rows.sort(key=lambda row: sum(item.length for item in row))  # stable: ties keep the order of positions
        chunks = [rows[start : start + self._size] for start in range(0, len(rows), self._size)]
        has_classes = rows[0][0].example.label is not None
        filler = [[Item(TokenizedExample([self._pad_token_id], label=IGNORED if has_classes else None))]]
        chunks += [filler] * (-len(chunks) % self._world_size)
        return [
            collate(chunk, pad_token_id=self._pad_token_id, width=self._width, packed=self._row_tokens is not None)
            for chunk in chunks[self._rank :: self._world_size]
        ]

    def _rows(self, positions: range) -> list[list[Item]]:
        items = []
        for position in positions:
            draw = self._order.draw(position)
            items.append(Item(self._tasks[draw.task][draw.index], draw.task, position))
        if self._row_tokens is None:
            return [[item] for item in items]
        packed = pack([item.length for item in items], row_tokens=self._row_tokens)
        return [[items[number] for number in row] for row in packed]

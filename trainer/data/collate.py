"""The micro-batches of one optimizer step on one rank. Shapes: B examples, T tokens.

Which examples make up a step never depends on the layout; how they are dealt to
ranks and micro-batches does, and changes no sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.mixture import Mixture
from trainer.data.tokenize import TaskData, TokenizedExample
from trainer.loss import IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded examples."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    targets_BT: Tensor
    """What the logits at the same position must give: the next token, IGNORED where it carries no loss. A classifier's
    logits have one position, and its target is the class."""

    task_B: Tensor
    """Task number of each example."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        moved = (
            tensor.to(device) for tensor in (self.input_ids_BT, self.attention_mask_BT, self.targets_BT, self.task_B)
        )
        return Batch(*moved)


def collate(
    examples: Sequence[TokenizedExample], *, tasks: Sequence[int], pad_token_id: int, width: int | None = None
) -> Batch:
    """Pad to `width` tokens, or to the longest example of the batch."""
    width = width or max(len(example.input_ids) for example in examples)
    shape = (len(examples), width)
    input_ids_BT = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask_BT = torch.zeros(shape, dtype=torch.long)
    targets_BT = torch.full(shape, IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.input_ids, dtype=torch.long)
        input_ids_BT[row, : len(ids)] = ids
        attention_mask_BT[row, : len(ids)] = 1
        first_target = max(1, len(ids) - example.num_target_tokens)  # nothing predicts the first token
        targets_BT[row, first_target - 1 : len(ids) - 1] = ids[first_target:]
    if any(example.label is not None for example in examples):
        targets_BT = torch.tensor([[example.label] for example in examples], dtype=torch.long)
    return Batch(input_ids_BT, attention_mask_BT, targets_BT, torch.tensor(list(tasks), dtype=torch.long))


class StepBatches:
    """Micro-batches by step, for one rank."""

    def __init__(
        self,
        *,
        tasks: Sequence[TaskData],
        mixture: Mixture,
        examples_per_step: int,
        examples_per_microbatch: int,
        rank: int,
        world_size: int,
        pad_token_id: int,
        width: int | None = None,
    ) -> None:
        """Nothing is read until a step is asked for. `width`: tokens that every row is padded to."""
        self._tasks, self._mixture, self._pad_token_id, self._width = tasks, mixture, pad_token_id, width
        self._examples_per_step, self._size = examples_per_step, examples_per_microbatch
        self._rank, self._world_size = rank, world_size

    def at(self, step: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `step` (from 0).

        The step's examples are sorted by length and cut into micro-batches, dealt to the ranks in turn: little
        padding, and the ranks that wait for each other work on similar lengths.
        """
        positions = range(step * self._examples_per_step, (step + 1) * self._examples_per_step)
        draws = [self._mixture[position] for position in positions]
        examples = [(self._tasks[draw.task][draw.index], draw.task) for draw in draws]
        examples.sort(key=lambda pair: len(pair[0].input_ids))  # stable: ties keep the order of positions
        chunks = [examples[start : start + self._size] for start in range(0, len(examples), self._size)]
        return [
            collate(
                [example for example, _ in chunk],
                tasks=[task for _, task in chunk],
                pad_token_id=self._pad_token_id,
                width=self._width,
            )
            for chunk in chunks[self._rank :: self._world_size]
        ]

"""Which example of its task each position of a run gets: every pass over a task is a new shuffle.

Pure: a function of (seed, position) and of the sizes and lengths of the tasks.
Shapes: K tasks, T positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from trainer.data.mixture import task_sequence
from trainer.seeding import derived_seed

BLOCK = 65536
"""Lengths that are turned into Python numbers at once."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One position of the order: which task, and which of its examples."""

    task: int
    index: int


class _DrawnTokens:
    """Tokens of one task's draws, in the order of its draws, without end. Can be read again."""

    def __init__(self, example_tokens: np.ndarray, *, task: int, seed: int) -> None:
        self._example_tokens, self._task, self._seed = example_tokens, task, seed

    def __iter__(self) -> Iterator[int]:
        for epoch in count():
            order = example_order(len(self._example_tokens), task=self._task, epoch=epoch, seed=self._seed)
            for start in range(0, len(order), BLOCK):
                yield from self._example_tokens[order[start : start + BLOCK]].tolist()


def example_order(size: int, *, task: int, epoch: int, seed: int) -> np.ndarray:
    """The shuffle of one pass over one task."""
    order = np.arange(size, dtype=np.int32)
    if size > 1:
        np.random.Generator(np.random.Philox(derived_seed(seed, "order", task, epoch))).shuffle(order)
    return order


class Mixture:
    """Task and example of each position."""

    def __init__(
        self,
        *,
        sizes: Sequence[int | None],
        shares: np.ndarray,
        length: int,
        seed: int,
        example_tokens: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Lay out `length` positions over tasks of the given sizes, with the promise of `task_sequence`.

        Each pass over a task is a new shuffle; a task's n-th draw is example n mod size of pass n // size.

        Args:
            sizes: examples of each task; None where nobody knows, and the task's n-th draw is number n.
            shares: of each task, or of each task at each position; they sum to 1.
            length: positions.
            seed: of the shuffles. The order of the tasks follows from it only through the lengths of examples.
            example_tokens: tokens of every example of each task, where shares are shares of tokens.
        """
        lengths = None
        if example_tokens is not None:
            assert [len(tokens) for tokens in example_tokens] == list(sizes), "one length for each example"
            assert all(int(np.min(tokens)) > 0 for tokens in example_tokens), "an example without tokens moves no share"
            lengths = [_DrawnTokens(tokens, task=task, seed=seed) for task, tokens in enumerate(example_tokens)]
        self.tasks_T = task_sequence(shares, length=length, lengths=lengths)
        self.indices_T = np.zeros(length, dtype=np.int32)
        for task, size in enumerate(sizes):
            positions = np.flatnonzero(self.tasks_T == task)
            if size is None:
                self.indices_T[positions] = np.arange(len(positions), dtype=np.int32)
                continue
            for epoch, start in enumerate(range(0, len(positions), size)):
                one_pass = positions[start : start + size]
                self.indices_T[one_pass] = example_order(size, task=task, epoch=epoch, seed=seed)[: len(one_pass)]

    def __len__(self) -> int:
        return len(self.tasks_T)

    def __getitem__(self, position: int) -> Draw:
        return Draw(int(self.tasks_T[position]), int(self.indices_T[position]))

    def tokens(self, example_tokens: Sequence[np.ndarray | None]) -> np.ndarray:
        """Length of the example at each position (T, int32); 0 where nobody knows."""
        tokens_T = np.zeros(len(self), dtype=np.int32)
        for task, lengths in enumerate(example_tokens):
            if lengths is None:
                continue
            positions = np.flatnonzero(self.tasks_T == task)
            tokens_T[positions] = lengths[self.indices_T[positions]]
        return tokens_T

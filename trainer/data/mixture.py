"""Order of training examples across tasks.

Pure: the order is a function of (seed, position), never of the number of ranks,
so a resumed run continues exactly where it stopped. Knows nothing of tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.seeding import derived_seed


@dataclass(frozen=True, slots=True)
class Draw:
    """One position of the order: which task, and which of its examples."""

    task: int
    index: int


def task_sequence(weights: Sequence[float], *, length: int) -> np.ndarray:
    """Task of each position, such that every prefix holds every task's share to within one example.

    The chairman assignment of Tijdeman (1980, Discrete Mathematics 32, 323-330): among the tasks whose lag has
    reached 1/(2k-2), take the one that must be served soonest. Then |count_i(t) - share_i * t| <= 1 - 1/(2k-2)
    at every position t, for k tasks.

    Returns:
        int array of `length` task numbers.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    sequence = np.zeros(length, dtype=np.int64)
    if len(shares) == 1:
        return sequence
    margin = 1.0 / (2 * len(shares) - 2)
    counts = np.zeros(len(shares))
    for position in range(length):
        lag = shares * (position + 1) - counts
        # A task's deadline: the position at which its lag would pass 1 - margin. Rounding of sums must not
        # shut out a task whose lag is exactly at the bound.
        deadline = np.where(lag >= margin - 1e-9, (1.0 - margin - lag) / shares, np.inf)
        chosen = int(np.argmin(deadline))
        sequence[position] = chosen
        counts[chosen] += 1
    return sequence


class Mixture:
    """The order of a whole run, addressed by position."""

    def __init__(self, *, sizes: Sequence[int], weights: Sequence[float], length: int, seed: int) -> None:
        """Lay out `length` positions over tasks of the given sizes.

        Each pass over a task is a new shuffle; a task's n-th draw is example n mod size of pass n // size.
        """
        self._sizes = tuple(sizes)
        self._seed = seed
        self._tasks = task_sequence(weights, length=length)
        self._nth_draw = np.zeros(length, dtype=np.int64)
        for task in range(len(sizes)):
            positions = np.flatnonzero(self._tasks == task)
            self._nth_draw[positions] = np.arange(len(positions))
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, position: int) -> Draw:
        task, nth = int(self._tasks[position]), int(self._nth_draw[position])
        epoch, offset = divmod(nth, self._sizes[task])
        return Draw(task, int(self._order(task, epoch)[offset]))

    def counts(self) -> list[int]:
        """Positions of each task in the whole run."""
        return [int(np.sum(self._tasks == task)) for task in range(len(self._sizes))]

    def _order(self, task: int, epoch: int) -> np.ndarray:
        if (task, epoch) not in self._orders:
            generator = np.random.Generator(np.random.Philox(derived_seed(self._seed, "order", task, epoch)))
            # A pass is over before the next begins: keep one order a task.
            self._orders = {key: order for key, order in self._orders.items() if key[0] != task}
            self._orders[task, epoch] = generator.permutation(self._sizes[task])
        return self._orders[task, epoch]

"""A task whose examples are read and tokenised while it trains, and are kept nowhere: for sources larger than the disk.

The order is the same on every number of ranks: each rank reads the whole source, shuffles it window by window, and
takes its part. A resumed run gets the same examples; it reads the source again from its beginning to find its place.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Literal

import numpy as np

from trainer.config.errors import DataError
from trainer.data.chunks import TaskRecipe, in_order, train_chunk
from trainer.data.leakage import Overlap
from trainer.data.sources import BadExamples, read_rows
from trainer.data.task_tokens import refuse_overlength
from trainer.data.token_store import Summary, TaskData, examples_of
from trainer.data.tokenize import TokenizedExample
from trainer.seeding import derived_seed

Named = tuple[str, TokenizedExample]


class StreamedTask:
    """Draws of one task by their number. Cheap as long as the numbers grow; a smaller one starts from the beginning."""

    def __init__(
        self,
        recipe: TaskRecipe,
        *,
        window_examples: int,
        on_bad_example: Literal["error", "skip"],
        on_overlaps: Callable[[list[Overlap]], None],
        seed: int,
    ) -> None:
        """Nothing is read yet.

        Args:
            window_examples: that are in memory, and are shuffled, together.
            on_overlaps: told about examples that are also held out, each time there are more of them.
        """
        self.name, self.key = recipe.name, recipe.key
        self.summary = Summary()
        """Of what has been read so far, repeats included."""

        self.num_examples = None
        """Nobody knows."""

        self.lengths = None
        """Nobody knows."""

        self._recipe, self._on_bad_example, self._on_overlaps = recipe, on_bad_example, on_overlaps
        self._window_examples, self._seed = window_examples, seed
        self._restart()

    def __getitem__(self, draw: int) -> TokenizedExample:
        """The example of a draw, counted over all passes.

        Raises:
            DataError: an example on the way to it is bad or over-long and may not be, or none is good.
        """
        return self._find(draw)[1]

    def first_lengths(self) -> np.ndarray:
        """Tokens of the examples of the first window."""
        self._find(0)
        return np.array([len(example.input_ids) for _, example in self._kept], dtype=np.int32)

    def example_id(self, draw: int) -> str:
        """The id of the row that the example of a draw was made of."""
        return self._find(draw)[0]

    def _restart(self) -> None:
        self._windows = self._read_windows()
        self._start, self._num_before = 0, 0
        self._kept: list[Named] = []

    def _find(self, draw: int) -> Named:
        if draw < self._start:
            self._restart()
        while draw >= self._start + len(self._kept):
            # The window before stays: the examples of a step may lie on both sides.
            self._start += self._num_before
            self._kept = self._kept[self._num_before :]
            self._num_before = len(self._kept)
            self._kept = [*self._kept, *next(self._windows)]
        return self._kept[draw - self._start]

    def _read_windows(self) -> Iterator[list[Named]]:
        """Shuffled windows, pass after pass, without end."""
        for epoch in count():
            number, window = 0, []
            for example in self._read_once():
                window.append(example)
                if len(window) == self._window_examples:
                    yield self._shuffled(window, epoch, number)
                    number, window = number + 1, []
            if window:
                yield self._shuffled(window, epoch, number)
            elif number == 0:
                raise DataError(f"data.tasks.{self.name}: empty data set: no example to train on.")

    def _read_once(self) -> Iterator[Named]:
        task, num_overlaps = self._recipe.task, 0
        bad = BadExamples(self._on_bad_example)
        rows = read_rows(task.train, columns=task.columns, bad=bad)
        for chunk in in_order(train_chunk, self._recipe, rows, processes=1):
            for message in chunk.bad:
                bad.add(message)
            if bad.count and self._on_bad_example == "error":
                bad.finish(f"data.tasks.{self.name}.train")
            refuse_overlength(self._recipe, chunk.num_overlength, chunk.first_overlength)
            if len(chunk.overlaps) > num_overlaps:
                num_overlaps = len(chunk.overlaps)
                self._on_overlaps(chunk.overlaps)
            self.summary.num_overlength += chunk.num_overlength
            self.summary.num_truncated += chunk.num_truncated
            self.summary.num_targets += chunk.num_targets
            self.summary.num_bad += len(chunk.bad)
            yield from examples_of(chunk.batch) if chunk.batch is not None else ()
        bad.finish(f"data.tasks.{self.name}.train")

    def _shuffled(self, window: list[Named], epoch: int, number: int) -> list[Named]:
        lengths = [len(example.input_ids) for _, example in window]
        self.summary.num_examples += len(window)
        self.summary.num_tokens += sum(lengths)
        self.summary.longest = max(self.summary.longest, *lengths)
        seed = derived_seed(self._seed, "stream", self.name, epoch, number)
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(window))
        return [window[index] for index in order.tolist()]


TrainingTask = TaskData | StreamedTask
"""The training examples of a task: all of them on disk, or read as they come."""

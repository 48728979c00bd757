"""The order of a whole run, laid out once: the example at each position, and the positions of each step.

A function of the seed, the shares and the lengths of the examples, never of the ranks. It is kept on disk and mapped,
so that a run of many steps starts as fast as a short one. Shapes: K tasks, T positions, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config.data_schema import MixtureSection
from trainer.data.by_steps import lay_out_by_steps
from trainer.data.course import Course, position_shares
from trainer.data.draws import Draw, Mixture
from trainer.data.packing import (
    largest_packing_prefix,
    step_starts_by_examples,
    step_starts_by_rows,
    step_starts_by_tokens,
)

MORE_POSITIONS = 1.05
"""Where the positions of a first guess do not hold all steps."""

ARRAYS = ("tasks", "indices", "tokens", "step_starts")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """How many examples make up an optimizer step: one of the three."""

    num_steps: int
    examples: int | None = None
    tokens: int | None = None
    rows: int | None = None
    """Packed rows of `row_tokens` tokens."""

    row_tokens: int = 0

    def starts(self, tokens_T: np.ndarray) -> np.ndarray | None:
        """First position of each step and the end of the last (S + 1); None where the positions do not suffice."""
        if self.examples is not None:
            return step_starts_by_examples(num_steps=self.num_steps, examples_per_step=self.examples)
        if self.rows is not None:
            return step_starts_by_rows(
                tokens_T, num_steps=self.num_steps, rows_per_step=self.rows, row_tokens=self.row_tokens
            )
        assert self.tokens is not None
        return step_starts_by_tokens(tokens_T, num_steps=self.num_steps, tokens_per_step=self.tokens)

    def cut(self, lengths: list[int]) -> int | None:
        """How many of the next examples belong to a step; None where more of them must be known."""
        before = np.cumsum(lengths)
        if self.rows is not None:
            if before[-1] <= self.rows * self.row_tokens:
                return None
            within = int(np.searchsorted(before, self.rows * self.row_tokens, side="right"))
            return largest_packing_prefix(lengths[:within], num_rows=self.rows, row_tokens=self.row_tokens)
        assert self.tokens is not None
        within = int(np.searchsorted(before, self.tokens, side="right"))
        return None if within == len(lengths) else max(1, within)


@dataclass(frozen=True, slots=True)
class Order:
    """Arrays in memory, or mapped files."""

    tasks_T: np.ndarray
    """Task of each position: int16."""

    indices_T: np.ndarray
    """Number of the example in its task: int32."""

    tokens_T: np.ndarray
    """Length of the example: int32; 0 of a streamed one."""

    step_starts_S1: np.ndarray
    """Step s (from 0) holds the positions from its own entry up to the next one: int64."""

    def positions(self, step: int) -> range:
        """Positions of one step."""
        return range(int(self.step_starts_S1[step]), int(self.step_starts_S1[step + 1]))

    def draw(self, position: int) -> Draw:
        """Task and example of one position."""
        return Draw(int(self.tasks_T[position]), int(self.indices_T[position]))

    @property
    def num_examples(self) -> int:
        """Positions of the whole run."""
        return int(self.step_starts_S1[-1])

    def realised(self, first_step: int, end_step: int, *, num_tasks: int, unit: str) -> list[float]:
        """Share of each task in these steps, of their examples or of their tokens."""
        part = slice(int(self.step_starts_S1[first_step]), int(self.step_starts_S1[end_step]))
        weights = self.tokens_T[part] if unit == "tokens" else None
        sums = np.bincount(self.tasks_T[part], weights=weights, minlength=num_tasks)
        return [float(share) for share in sums / sums.sum()]

    def step_amounts(self, *, unit: str) -> np.ndarray:
        """Examples, or tokens, of each step (S)."""
        if unit == "examples":
            return np.diff(self.step_starts_S1)
        return np.add.reduceat(self.tokens_T[: self.num_examples], self.step_starts_S1[:-1], dtype=np.int64)

    def draws(self, num_tasks: int) -> list[int]:
        """Examples of each task in the whole run, repeats included."""
        return np.bincount(self.tasks_T[: self.num_examples], minlength=num_tasks).tolist()

    def write(self, folder: Path) -> None:
        """One file for each array."""
        for name, array in zip(ARRAYS, (self.tasks_T, self.indices_T, self.tokens_T, self.step_starts_S1), strict=True):
            np.save(folder / f"{name}.npy", array)


def open_order(folder: Path) -> Order:
    """What `Order.write` wrote, mapped."""
    return Order(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS))


def lay_out(
    course: Course, *, mixture: MixtureSection, lengths: Sequence[np.ndarray | None], size: StepSize, seed: int
) -> Order:
    """The order of a run, with the promise of `task_sequence` for the shares of the course.

    Args:
        lengths: tokens of each example of each task; None of a streamed one, which needs `size.examples` and shares
            of examples.
    """
    known, by_tokens = [task for task in lengths if task is not None], mixture.unit == "tokens"
    assert len(known) == len(lengths) or (size.examples is not None and not by_tokens), size
    if size.examples is None and not course.is_steady:
        laid = lay_out_by_steps(course.shares_SK, lengths=known, cut=size.cut, by_tokens=by_tokens, seed=seed)
        return Order(laid.tasks_T, laid.indices_T, laid.tokens_T, laid.step_starts_S1)
    length = (size.examples or 0) * size.num_steps or 64
    while True:
        shares = course.shares_SK[0]
        if not course.is_steady:
            shares = position_shares(course.shares_SK, step_starts=np.arange(size.num_steps + 1) * (size.examples or 0))
        draws = Mixture(
            sizes=[None if task is None else len(task) for task in lengths],
            shares=shares,
            length=length,
            seed=seed,
            example_tokens=known if by_tokens else None,
        )
        tokens_T = draws.tokens(lengths)
        starts_S1 = size.starts(tokens_T)
        if starts_S1 is not None:
            end = int(starts_S1[-1])
            return Order(draws.tasks_T[:end], draws.indices_T[:end], tokens_T[:end], starts_S1)
        budget = size.num_steps * (size.tokens or (size.rows or 0) * size.row_tokens)
        length = max(int(length * MORE_POSITIONS), int(budget / tokens_T.mean())) + 64

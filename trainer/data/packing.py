"""Examples of one optimizer step packed into rows, and the run's order of examples cut into steps.

Pure: every answer is a function of the lengths in the order, never of ranks, so that every rank finds the same one
for itself. Knows nothing of tensors or tasks.

Shapes: T positions of the order.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, *, row_tokens: int) -> list[list[int]]:
    """Rows of example numbers, packed by best-fit decreasing.

    The examples are placed from the longest to the shortest (ties: the lower number first), each into the fullest row
    that still has room for it (ties: the row begun first), or into a new row where none has. Takes at most
    11/9 * OPT + 4 rows, where OPT is the fewest that any packing takes (Johnson, Demers, Ullman, Garey and Graham 1974,
    "Worst-case performance bounds for simple one-dimensional packing algorithms", SIAM Journal on Computing 3,
    299-325). Ding et al. 2024 ("Fewer truncations improve language modeling", arXiv:2404.10830) pack training data so.

    Args:
        lengths: tokens of each example, each from 1 to `row_tokens`.
        row_tokens: slots of a row, one token each.

    Returns:
        The rows in the order in which they were begun, each with its examples in the order of their numbers.
    """
    tokens = _whole_examples(lengths, row_tokens=row_tokens)
    num_examples = len(tokens)
    rows: list[list[int]] = []
    # Room and number of every row in one integer, ascending: the first that reaches `length * num_examples` is the
    # best fit. There are never more rows than examples, so the two come apart again.
    open_rows: list[int] = []
    longest_first = np.argsort(-tokens, kind="stable")
    for number, length in zip(longest_first.tolist(), tokens[longest_first].tolist(), strict=True):
        at = bisect_left(open_rows, length * num_examples)
        if at < len(open_rows):
            room, row = divmod(open_rows.pop(at), num_examples)
        else:
            room, row = row_tokens, len(rows)
            rows.append([])
        rows[row].append(number)
        insort(open_rows, (room - length) * num_examples + row, hi=at)
    return [sorted(row_examples) for row_examples in rows]


def step_starts_by_examples(*, num_steps: int, examples_per_step: int) -> np.ndarray:
    """First position of every step, and at the end the first position after the last: int64 (num_steps + 1)."""
    return np.arange(num_steps + 1, dtype=np.int64) * examples_per_step


def step_starts_by_tokens(lengths_T: np.ndarray, *, num_steps: int, tokens_per_step: int) -> np.ndarray | None:
    """Cut the order by tokens: a step takes the next examples while they have at most `tokens_per_step` together.

    An example that has more tokens than that is a step of its own.

    Args:
        lengths_T: tokens of each position, positive.
        num_steps: how many steps to cut.
        tokens_per_step: the most tokens of a step with more than one example.

    Returns:
        As `step_starts_by_examples`; a longer order with the same beginning gives the same. None where the order is
        too short: the last step too must leave an example behind, or more might belong to it.
    """
    tokens_before = _tokens_before(lengths_T)
    starts = [0]
    for _ in range(num_steps):
        end = max(_end_within(tokens_before, start=starts[-1], num_tokens=tokens_per_step), starts[-1] + 1)
        if end >= len(lengths_T):
            return None
        starts.append(end)
    return np.array(starts, dtype=np.int64)


def step_starts_by_rows(
    lengths_T: np.ndarray, *, num_steps: int, rows_per_step: int, row_tokens: int
) -> np.ndarray | None:
    """Cut the order by rows: a step takes as many of the next examples as `pack` gets into `rows_per_step` rows.

    Exactly: of all n such that the next n examples pack, the largest. An n that fails need not rule out a larger one:
    no proof says that best-fit decreasing never takes more rows for fewer examples, so bisection could miss the
    largest. n is searched downward, from the most examples whose tokens the slots can hold.

    Args:
        lengths_T: tokens of each position, each from 1 to `row_tokens`, so that a step has at least one example.
        num_steps: how many steps to cut.
        rows_per_step: rows of a step, positive.
        row_tokens: slots of a row, one token each.

    Returns:
        As `step_starts_by_examples`; a longer order with the same beginning gives the same. None where the order is
        too short: it must go on for more tokens than the last step has slots.
    """
    assert rows_per_step > 0, rows_per_step
    tokens_T = _whole_examples(lengths_T, row_tokens=row_tokens)
    tokens_before = _tokens_before(tokens_T)
    starts = [0]
    for _ in range(num_steps):
        start = starts[-1]
        end = _end_within(tokens_before, start=start, num_tokens=rows_per_step * row_tokens)
        if end >= len(tokens_T):
            return None
        lengths = tokens_T[start:end].tolist()
        starts.append(start + largest_packing_prefix(lengths, num_rows=rows_per_step, row_tokens=row_tokens))
    return np.array(starts, dtype=np.int64)


def packing_efficiency(
    lengths_T: np.ndarray, step_starts: np.ndarray, *, row_tokens: int, max_steps: int = 200
) -> float:
    """Share of the slots of the rows that hold a token, over at most `max_steps` evenly chosen steps, packed."""
    num_steps = len(step_starts) - 1
    num_chosen = min(num_steps, max_steps)
    assert num_chosen > 0, (num_steps, max_steps)
    num_tokens, num_rows = 0, 0
    for step in (np.arange(num_chosen) * num_steps // num_chosen).tolist():
        lengths = lengths_T[step_starts[step] : step_starts[step + 1]]
        num_tokens += int(np.sum(lengths, dtype=np.int64))
        num_rows += len(pack(lengths, row_tokens=row_tokens))
    return num_tokens / (num_rows * row_tokens)


def _whole_examples(lengths: Sequence[int] | np.ndarray, *, row_tokens: int) -> np.ndarray:
    """The lengths as int64, each of which fits in a row."""
    tokens = np.asarray(lengths, dtype=np.int64)
    assert np.all((tokens >= 1) & (tokens <= row_tokens)), f"every length must be 1 to {row_tokens}"
    return tokens


def _tokens_before(lengths_T: np.ndarray) -> np.ndarray:
    """Tokens before each position, and of the whole order: int64 (T + 1), ascending."""
    assert np.all(lengths_T > 0), "an example without tokens would belong to either of two steps"
    return np.concatenate([[0], np.cumsum(lengths_T, dtype=np.int64)])


def _end_within(tokens_before: np.ndarray, *, start: int, num_tokens: int) -> int:
    """The last position such that those from `start` until before it have at most `num_tokens` tokens."""
    return int(np.searchsorted(tokens_before, tokens_before[start] + num_tokens, side="right")) - 1


def largest_packing_prefix(lengths: list[int], *, num_rows: int, row_tokens: int) -> int:
    """The largest n such that the first n examples pack into `num_rows` rows."""
    count, ascending = len(lengths), sorted(lengths)
    failing = _first_without_room(ascending, num_rows=num_rows, row_tokens=row_tokens)
    while failing >= 0:
        count -= 1
        removed = bisect_left(ascending, lengths[count])
        del ascending[removed]
        # Examples are placed from the longest down. Without one whose turn had not come yet, the same one fails again.
        if removed < failing:
            failing -= 1
        else:
            failing = _first_without_room(ascending, num_rows=num_rows, row_tokens=row_tokens)
    return count


def _first_without_room(ascending: list[int], *, num_rows: int, row_tokens: int) -> int:
    """Index of the first length that best-fit decreasing cannot place in `num_rows` rows; -1 where it places all."""
    # `pack` without numbers: rows of equal room are alike, and an empty row is the one with the most room.
    rooms = [row_tokens] * num_rows
    for at in range(len(ascending) - 1, -1, -1):
        best = bisect_left(rooms, ascending[at])
        if best == num_rows:
            return at
        insort(rooms, rooms.pop(best) - ascending[at], hi=best)
    return -1

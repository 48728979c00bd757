"""Examples packed into rows, and the order cut into steps. Shapes: T positions."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.packing import (
    pack,
    packing_efficiency,
    step_starts_by_examples,
    step_starts_by_rows,
    step_starts_by_tokens,
)

ROW_TOKENS = 24
SHARE_OF_SLOTS_USED = 0.97

checked = settings(deadline=None, derandomize=True, max_examples=200, database=None)


@st.composite
def orders(draw: st.DrawFn, *, max_length: int = 160) -> list[int]:
    """Lengths that pack well, and lengths of which fewer fit in some rows than their slots could hold."""
    lengths = draw(
        st.sampled_from([range(1, ROW_TOKENS + 1), range(1, 8), range(6, 13), range(9, 16), range(13, 20), (10,)])
        | st.lists(st.integers(1, ROW_TOKENS), min_size=1, max_size=4)
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    return [int(length) for length in generator.choice(lengths, draw(st.integers(0, max_length)))]


def packed_by_the_definition(lengths: list[int], *, row_tokens: int) -> list[list[int]]:
    """Best-fit decreasing, word for word."""
    rows: list[list[int]] = []
    rooms: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        with_room = [row for row, room in enumerate(rooms) if room >= lengths[number]]
        if not with_room:
            with_room = [len(rows)]
            rows.append([])
            rooms.append(row_tokens)
        fullest = min(with_room, key=lambda row: (rooms[row], row))
        rows[fullest].append(number)
        rooms[fullest] -= lengths[number]
    return [sorted(row) for row in rows]


def fewest_rows(lengths: tuple[int, ...], *, row_tokens: int) -> int:
    """By trying everything: the rows that hold a set of examples, and the tokens in the last, as small as can be."""

    @cache
    def best(chosen: int) -> tuple[int, int]:
        if chosen == 0:
            return 0, row_tokens
        found = []
        for number, length in enumerate(lengths):
            if chosen >> number & 1:
                num_rows, last = best(chosen ^ 1 << number)
                found.append((num_rows, last + length) if last + length <= row_tokens else (num_rows + 1, length))
        return min(found)

    return best((1 << len(lengths)) - 1)[0]


def starts_by_the_definition(
    lengths: list[int], *, num_steps: int, rows_per_step: int, row_tokens: int
) -> list[int] | None:
    """Try every count downward from the most examples that the slots can hold."""
    starts = [0]
    for _ in range(num_steps):
        rest = lengths[starts[-1] :]
        num_fitting = int(np.sum(np.cumsum(rest) <= rows_per_step * row_tokens))
        if num_fitting == len(rest):
            return None
        counts = range(num_fitting, 0, -1)
        packing = (n for n in counts if len(pack(rest[:n], row_tokens=row_tokens)) <= rows_per_step)
        starts.append(starts[-1] + next(packing))
    return starts


def test_the_fullest_row_with_room_takes_the_next_longest_example() -> None:
    # Longest first: 7 begins row 0 (room 3), 6 row 1 (room 4). 4 fits only row 1 (room 0), 3 row 0 (room 0).
    # 2 begins row 2.
    assert pack([2, 7, 3, 6, 4], row_tokens=10) == [[1, 2], [3, 4], [0]]
    # 8 and 5 begin rows with rooms 2 and 5. The 2 goes to the fuller one, the first 1 to the other, then the last too.
    assert pack([1, 5, 2, 8, 1], row_tokens=10) == [[2, 3], [0, 1, 4]]


def test_of_equal_examples_the_lower_number_and_of_equal_rows_the_lower_row_comes_first() -> None:
    # Examples 0, 2 and 4 begin rows 0, 1 and 2, with 4 slots left in each; 1, 3 and 5 fill them in that order.
    assert pack([6, 4, 6, 4, 6, 4], row_tokens=10) == [[0, 1], [2, 3], [4, 5]]
    # The row that was begun later becomes as full as the first: 5 + 2 = 7. The next 2 goes to the first.
    assert pack([7, 5, 2, 2], row_tokens=9) == [[0, 2], [1, 3]]
    assert pack([7, 6, 1, 1], row_tokens=8) == [[0, 2], [1, 3]]


def test_nothing_packs_into_no_rows() -> None:
    assert pack([], row_tokens=8) == []


@pytest.mark.parametrize("length", [0, -1, 9])
def test_an_example_that_is_empty_or_longer_than_a_row_is_our_own_mistake(length: int) -> None:
    with pytest.raises(AssertionError, match="1 to 8"):
        pack([3, length], row_tokens=8)
    with pytest.raises(AssertionError, match="1 to 8"):
        step_starts_by_rows(np.array([3, length]), num_steps=1, rows_per_step=1, row_tokens=8)


def test_a_step_without_rows_or_an_example_without_tokens_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        step_starts_by_rows(np.array([3, 3]), num_steps=1, rows_per_step=0, row_tokens=8)
    with pytest.raises(AssertionError, match="without tokens"):
        step_starts_by_tokens(np.array([3, 0, 3]), num_steps=1, tokens_per_step=3)


@checked
@given(orders())
def test_packing_is_best_fit_decreasing_to_the_letter(lengths: list[int]) -> None:
    assert pack(lengths, row_tokens=ROW_TOKENS) == packed_by_the_definition(lengths, row_tokens=ROW_TOKENS)


@checked
@given(orders())
def test_every_example_is_in_one_row_and_no_row_holds_more_than_its_slots(lengths: list[int]) -> None:
    rows = pack(lengths, row_tokens=ROW_TOKENS)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= ROW_TOKENS for row in rows)
    assert all(row and row == sorted(row) for row in rows)


@checked
@given(orders())
def test_the_rows_do_not_depend_on_what_holds_the_lengths(lengths: list[int]) -> None:
    expected = pack(lengths, row_tokens=ROW_TOKENS)
    assert all(type(number) is int for row in expected for number in row)
    containers: list[Sequence[int] | np.ndarray] = [tuple(lengths), np.array(lengths, dtype=np.int64)]
    containers.append(np.array(lengths, dtype=np.uint8))  # unsigned numbers and sums over 255 must not wrap
    assert all(pack(container, row_tokens=ROW_TOKENS) == expected for container in containers)


@checked
@given(st.lists(st.integers(1, ROW_TOKENS), min_size=1, max_size=8))
def test_at_most_half_as_many_rows_again_as_the_best_packing_has(lengths: list[int]) -> None:
    # For so few rows 11/9 OPT + 4 says little. Simchi-Levi (1994, "New worst-case results for the bin-packing problem",
    # Naval Research Logistics 41, 579-585) shows 3/2 OPT.
    fewest = fewest_rows(tuple(lengths), row_tokens=ROW_TOKENS)
    assert fewest <= len(pack(lengths, row_tokens=ROW_TOKENS)) <= 3 * fewest // 2


@checked
@given(st.integers(1, 120), st.integers(0, 2**31))
def test_full_rows_that_were_cut_up_are_put_together_again_in_at_most_eleven_ninths_of_them(
    num_rows: int, seed: int
) -> None:
    # The best packing of the pieces takes exactly `num_rows` rows, all of them full.
    generator = np.random.default_rng(seed)
    cuts = [np.sort(generator.choice(np.arange(1, 1000), 3, replace=False)) for _ in range(num_rows)]
    pieces = generator.permutation([np.diff(row_cuts, prepend=0, append=1000) for row_cuts in cuts]).ravel()
    assert num_rows <= len(pack(pieces, row_tokens=1000)) <= 11 * num_rows / 9 + 4


def test_steps_of_examples_are_equally_long() -> None:
    starts = step_starts_by_examples(num_steps=3, examples_per_step=40)
    assert starts.dtype == np.int64
    assert starts.tolist() == [0, 40, 80, 120]


def test_a_step_of_tokens_ends_before_the_example_that_would_exceed_them() -> None:
    # 3 + 4 = 7 and 3 would make 10: exactly the budget, so it belongs; 1 would make 11. Then 1 + 9 = 10. Then 12 alone
    # is over the budget. Then 2 + 2, and 7 would make 11.
    lengths_T = np.array([3, 4, 3, 1, 9, 12, 2, 2, 7])
    starts = step_starts_by_tokens(lengths_T, num_steps=4, tokens_per_step=10)
    assert starts is not None
    assert starts.dtype == np.int64
    assert starts.tolist() == [0, 3, 5, 6, 8]
    assert step_starts_by_tokens(lengths_T, num_steps=5, tokens_per_step=10) is None
    # Without the 7, a fourth step might have had more.
    assert step_starts_by_tokens(lengths_T[:-1], num_steps=4, tokens_per_step=10) is None


@checked
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 60), st.integers(1, 8))
def test_a_step_of_tokens_is_within_its_budget_and_one_more_example_would_not_be(
    lengths: list[int], tokens_per_step: int, num_steps: int
) -> None:
    starts = step_starts_by_tokens(np.array(lengths), num_steps=num_steps, tokens_per_step=tokens_per_step)
    if starts is None:
        return
    assert len(starts) == num_steps + 1
    assert starts[0] == 0
    for start, end in pairwise(starts.tolist()):
        assert end > start
        assert end == start + 1 or sum(lengths[start:end]) <= tokens_per_step
        assert sum(lengths[start : end + 1]) > tokens_per_step


def test_a_step_of_rows_takes_examples_until_one_finds_no_room() -> None:
    # Two rows of 10 slots. 6 + 6 + 6 tokens are fewer than 20, but need three rows: step 0 has two examples. 6 + 4 and
    # 5 + 5 fill step 1. 6 + 4 and 9 leave one slot in step 2. The last two 9 have 18 tokens: a third example of 1
    # might follow and fit, so step 3 cannot be cut yet.
    lengths_T = np.array([6, 6, 6, 4, 5, 5, 6, 4, 9, 9, 9])
    starts = step_starts_by_rows(lengths_T, num_steps=3, rows_per_step=2, row_tokens=10)
    assert starts is not None
    assert starts.dtype == np.int64
    assert starts.tolist() == [0, 2, 6, 9]
    assert step_starts_by_rows(lengths_T, num_steps=4, rows_per_step=2, row_tokens=10) is None


def test_examples_of_more_than_half_a_row_have_a_row_each_even_if_the_tokens_of_more_would_fit() -> None:
    # The slots of 100 rows could hold 196 examples of 51 in 100.
    lengths_T = np.full(1000, 51)
    starts = step_starts_by_rows(lengths_T, num_steps=8, rows_per_step=100, row_tokens=100)
    assert starts is not None
    assert starts.tolist() == list(range(0, 801, 100))


@checked
@given(orders(), st.integers(1, 6), st.integers(1, 4))
def test_a_step_of_rows_has_the_largest_count_that_packs(
    lengths: list[int], rows_per_step: int, num_steps: int
) -> None:
    sizes = {"num_steps": num_steps, "rows_per_step": rows_per_step, "row_tokens": ROW_TOKENS}
    starts = step_starts_by_rows(np.array(lengths, dtype=np.int32), **sizes)
    assert (None if starts is None else starts.tolist()) == starts_by_the_definition(lengths, **sizes)


@checked
@given(orders(), st.integers(1, 6), st.integers(1, 4))
def test_steps_of_rows_follow_each_other_and_no_example_more_would_pack(
    lengths: list[int], rows_per_step: int, num_steps: int
) -> None:
    starts = step_starts_by_rows(
        np.array(lengths), num_steps=num_steps, rows_per_step=rows_per_step, row_tokens=ROW_TOKENS
    )
    if starts is None:
        return
    assert len(starts) == num_steps + 1
    assert starts[0] == 0
    for start, end in pairwise(starts.tolist()):
        assert end > start
        assert len(pack(lengths[start:end], row_tokens=ROW_TOKENS)) <= rows_per_step
        assert len(pack(lengths[start : end + 1], row_tokens=ROW_TOKENS)) > rows_per_step


@checked
@given(orders(), orders(max_length=60), st.integers(1, 4), st.integers(1, 4))
def test_a_longer_order_or_more_steps_leave_the_first_steps_as_they_are(
    lengths: list[int], further: list[int], rows_per_step: int, num_steps: int
) -> None:
    def cuts(order: list[int], *, num_steps: int) -> list[list[int] | None]:
        order_T, num_tokens = np.array(order), rows_per_step * ROW_TOKENS
        by_tokens = step_starts_by_tokens(order_T, num_steps=num_steps, tokens_per_step=num_tokens)
        by_rows = step_starts_by_rows(order_T, num_steps=num_steps, rows_per_step=rows_per_step, row_tokens=ROW_TOKENS)
        return [None if starts is None else starts.tolist() for starts in (by_tokens, by_rows)]

    shorter = cuts(lengths, num_steps=num_steps)
    longer = cuts(lengths + further, num_steps=num_steps)
    more_steps = cuts(lengths + further, num_steps=num_steps + 1)
    for starts, longer_starts, more_starts in zip(shorter, longer, more_steps, strict=True):
        assert starts is None or starts == longer_starts
        assert more_starts is None or more_starts[:-1] == longer_starts


def test_efficiency_is_the_tokens_over_the_slots_of_all_rows_of_the_chosen_steps() -> None:
    # Step 0: 6 + 4 in one row. Step 1: 6 and 6 in two rows. Together 22 tokens in 30 slots; the mean of 1 and 0.6 is
    # not asked for.
    lengths_T, step_starts = np.array([6, 4, 6, 6]), np.array([0, 2, 4])
    assert packing_efficiency(lengths_T, step_starts, row_tokens=10) == 22 / 30
    # One step of two is the first.
    assert packing_efficiency(lengths_T, step_starts, row_tokens=10, max_steps=1) == 1.0


def test_the_steps_that_efficiency_looks_at_are_spread_over_the_whole_run() -> None:
    # Steps 0, 2, 4 and 6 of 8, with one example of 1 to 8 tokens in each: 1 + 3 + 5 + 7 = 16 tokens in 4 rows of 8.
    lengths_T, step_starts = np.arange(1, 9), np.arange(9)
    assert packing_efficiency(lengths_T, step_starts, row_tokens=8, max_steps=4) == 16 / 32


def test_lengths_as_in_fine_tuning_data_leave_few_slots_empty() -> None:
    generator = np.random.default_rng(0)
    lengths_T = np.clip(generator.lognormal(np.log(60), 0.7, 60_000), 8, 1024).astype(np.int32)
    starts = step_starts_by_rows(lengths_T, num_steps=100, rows_per_step=32, row_tokens=1024)
    assert starts is not None
    assert packing_efficiency(lengths_T, starts, row_tokens=1024) > SHARE_OF_SLOTS_USED
    # Not only of the rows that were begun: a step leaves none of its rows out.
    assert int(lengths_T[: starts[-1]].sum()) / (100 * 32 * 1024) > SHARE_OF_SLOTS_USED

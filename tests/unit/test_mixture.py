"""Order over tasks: every prefix holds the shares, every pass holds every example, nothing depends on the reader."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from trainer.data.draws import Draw, Mixture
from trainer.data.mixture import task_sequence
from trainer.data.order import Order, open_order

ROUNDING = 1e-9
LENGTH = 600
SEED = 17
GOLDEN_ORDER = "0781e51cefd685bc86c6f39b23b9860cb16488b113b5790ce838ced3b214a105"

WEIGHTS = {
    "one task": (3.0,),
    "two alike": (1.0, 1.0),
    "two to one": (2.0, 1.0),
    "irrational": (2**0.5, 3**0.5, 5**0.5),
    "primes": (2.0, 3.0, 5.0, 7.0, 11.0, 13.0),
    "one giant": (1e9, 1.0, 1.0),
    "giant last": (1.0, 1.0, 1e9),
    "six magnitudes": (1e-5, 1.0, 1e5, 3.0, 3.0, 3.0),
    "a share too small to be seen": (1.0, 1e-300),
    "nearly all": (0.97, 0.01, 0.01, 0.01),
    "fifty alike": (1.0,) * 50,
    "powers of two": tuple(2.0**power for power in range(12)),
}


def normalised(*weights: float) -> np.ndarray:
    return np.asarray(weights, dtype=np.float64) / np.sum(weights)


def largest_lag(weights: tuple[float, ...], *, length: int) -> float:
    """Largest |count of a task - its share| over all tasks and all prefixes."""
    shares = normalised(*weights)
    sequence = task_sequence(shares, length=length)
    counts_TK = np.cumsum(sequence[:, None] == np.arange(len(weights)), axis=0)
    return float(np.max(np.abs(counts_TK - shares * np.arange(1, length + 1)[:, None])))


def promise(num_tasks: int) -> float:
    """Tijdeman's bound, which no order can beat for every choice of shares."""
    return 1.0 - 1.0 / (2 * num_tasks - 2) if num_tasks > 1 else 0.0


def draws(mixture: Mixture) -> list[Draw]:
    return [mixture[position] for position in range(len(mixture))]


def counts(mixture: Mixture) -> list[int]:
    """Positions of each of three tasks."""
    return np.bincount(mixture.tasks_T, minlength=3).tolist()


def passes(mixture: Mixture, *, task: int, size: int) -> list[list[int]]:
    """The draws of one task, cut into its passes."""
    indices = [draw.index for draw in draws(mixture) if draw.task == task]
    return [indices[start : start + size] for start in range(0, len(indices), size)]


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_every_prefix_holds_every_share_to_within_the_promise(weights: tuple[float, ...]) -> None:
    assert largest_lag(weights, length=LENGTH) <= promise(len(weights)) + ROUNDING


def test_every_prefix_holds_the_shares_of_random_weights_over_many_magnitudes() -> None:
    generator = np.random.default_rng(0)
    for _ in range(120):
        weights = tuple(generator.lognormal(sigma=3.0, size=generator.integers(2, 9)))
        assert largest_lag(weights, length=200) <= promise(len(weights)) + ROUNDING, weights


def test_three_to_one_is_served_in_the_order_worked_by_hand() -> None:
    # Shares 3/4 and 1/4, two tasks: a task may be served once its lag has reached 1/2.
    # t=1: lags 3/4, 1/4             -> 0
    # t=2: lags 6/4 - 1, 2/4 = 1/2, 1/2; both are due now; the first of them -> 0
    # t=3: lags 9/4 - 2, 3/4 = 1/4, 3/4 -> 1
    # t=4: lags 12/4 - 2, 4/4 - 1 = 1, 0 -> 0, and all lags are 0 again.
    assert task_sequence(normalised(3, 1), length=12).tolist() == [0, 0, 1, 0] * 3


def test_the_order_of_a_given_seed_is_the_one_that_earlier_runs_trained_on() -> None:
    # A checkpoint holds no order: it is laid out again on resume and must come out the same.
    mixture = Mixture(sizes=[40, 7, 3], shares=normalised(5.0, 3.0, 2**0.5), length=300, seed=SEED)
    text = ",".join(f"{draw.task}:{draw.index}" for draw in draws(mixture))
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN_ORDER


def test_equal_tasks_have_equal_counts_after_every_round() -> None:
    # After 5 n positions each share is n, a whole number, and a count within less than 1 of it is n.
    rounds = task_sequence(np.full(5, 0.2), length=100).reshape(20, 5)
    assert all(sorted(row) == [0, 1, 2, 3, 4] for row in rounds.tolist())


def test_every_pass_over_a_task_is_a_permutation_and_no_two_passes_are_alike() -> None:
    # 210 positions at 2 : 1 are 140 and 70: 10 passes over 14 examples, 10 over 7.
    mixture = Mixture(sizes=[14, 7], shares=normalised(2.0, 1.0), length=210, seed=SEED)
    for task, size in enumerate((14, 7)):
        cut = passes(mixture, task=task, size=size)
        assert len(cut) == 10
        assert all(sorted(indices) == list(range(size)) for indices in cut)
        assert len({tuple(indices) for indices in cut}) == 10
        assert list(range(size)) not in cut


def test_an_unfinished_pass_repeats_no_example() -> None:
    mixture = Mixture(sizes=[100], shares=normalised(1.0), length=150, seed=SEED)
    whole, begun = passes(mixture, task=0, size=100)
    assert (len(set(whole)), len(begun), len(set(begun))) == (100, 50, 50)


def test_a_position_gives_the_same_draw_in_whatever_order_positions_are_asked() -> None:
    mixture = Mixture(sizes=[5, 3, 1], shares=normalised(1.0, 2.0, 0.5), length=140, seed=SEED)
    in_order = draws(mixture)
    positions = np.random.default_rng(1).permutation(140).tolist()
    fresh = Mixture(sizes=[5, 3, 1], shares=normalised(1.0, 2.0, 0.5), length=140, seed=SEED)
    assert [fresh[position] for position in positions] == [in_order[position] for position in positions]
    assert draws(mixture) == in_order


def test_a_longer_run_begins_with_the_draws_of_a_shorter_one() -> None:
    short = Mixture(sizes=[5, 3], shares=normalised(1.0, 2.0), length=40, seed=SEED)
    long = Mixture(sizes=[5, 3], shares=normalised(1.0, 2.0), length=90, seed=SEED)
    assert draws(long)[:40] == draws(short)


def test_another_seed_shuffles_anew_but_serves_the_tasks_in_the_same_order() -> None:
    one = draws(Mixture(sizes=[20, 20], shares=normalised(1.0, 2.0), length=60, seed=SEED))
    other = draws(Mixture(sizes=[20, 20], shares=normalised(1.0, 2.0), length=60, seed=SEED + 1))
    assert [draw.task for draw in one] == [draw.task for draw in other]
    assert [draw.index for draw in one] != [draw.index for draw in other]


def test_two_tasks_of_one_size_are_shuffled_apart() -> None:
    mixture = Mixture(sizes=[20, 20], shares=normalised(1.0, 1.0), length=40, seed=SEED)
    assert passes(mixture, task=0, size=20) != passes(mixture, task=1, size=20)


def test_a_position_says_its_task_and_its_example() -> None:
    # Shares 1/2, 1/3, 1/6 of 60.
    mixture = Mixture(sizes=[4, 4, 4], shares=normalised(3.0, 2.0, 1.0), length=60, seed=SEED)
    assert (len(mixture), counts(mixture)) == (60, [30, 20, 10])
    columns = zip(mixture.tasks_T.tolist(), mixture.indices_T.tolist(), strict=True)
    assert draws(mixture) == [Draw(task, index) for task, index in columns]


def test_a_task_that_is_never_drawn_is_counted_as_zero() -> None:
    mixture = Mixture(sizes=[4, 4], shares=normalised(1.0, 1e-6), length=10, seed=SEED)
    assert counts(mixture) == [10, 0, 0]
    assert order_of(mixture, [np.array([5] * 4)] * 2, starts=[0, 10]).draws(2) == [10, 0]


def order_of(mixture: Mixture, lengths: list[np.ndarray], *, starts: list[int]) -> Order:
    return Order(mixture.tasks_T, mixture.indices_T, mixture.tokens(lengths), np.array(starts))


def test_each_position_has_the_length_of_its_example() -> None:
    lengths = [np.array([3, 1, 4, 1]), np.array([5, 9, 2])]
    mixture = Mixture(sizes=[4, 3], shares=normalised(2.0, 1.0), length=30, seed=SEED)
    assert mixture.tokens(lengths).tolist() == [int(lengths[draw.task][draw.index]) for draw in draws(mixture)]


def test_an_order_counts_shares_and_repeats_of_the_steps_that_it_is_asked_for() -> None:
    # Tasks 0 1 1 | 0 0 | 1: 3 and 3 draws. Tokens 4 1 2 | 3 6 | 5.
    tasks, tokens = np.array([0, 1, 1, 0, 0, 1, 0]), np.array([4, 1, 2, 3, 6, 5, 100])
    order = Order(tasks, np.array([2, 0, 1, 0, 1, 0, 2]), tokens, np.array([0, 3, 5, 6]))
    assert (order.num_examples, order.draws(2), order.draws(3)) == (6, [3, 3], [3, 3, 0])
    assert [list(order.positions(step)) for step in range(3)] == [[0, 1, 2], [3, 4], [5]]
    assert (order.draw(0), order.draw(5)) == (Draw(0, 2), Draw(1, 0))
    assert order.realised(0, 3, num_tasks=2, unit="examples") == [0.5, 0.5]
    assert order.realised(0, 2, num_tasks=2, unit="examples") == [0.6, 0.4]
    assert order.realised(1, 2, num_tasks=3, unit="examples") == [1.0, 0.0, 0.0]
    # 4 + 3 + 6 of 16, and 9 of 14.
    assert order.realised(0, 2, num_tasks=2, unit="tokens") == pytest.approx([13 / 16, 3 / 16], abs=ROUNDING)
    assert order.realised(1, 3, num_tasks=2, unit="tokens") == pytest.approx([9 / 14, 5 / 14], abs=ROUNDING)


def test_an_order_comes_back_from_its_files_as_it_was(tmp_path: Path) -> None:
    lengths = [np.arange(4, 44), np.arange(9, 16)]
    mixture = Mixture(sizes=[40, 7], shares=normalised(5.0, 3.0), length=90, seed=SEED)
    order = order_of(mixture, lengths, starts=[0, 30, 70, 90])
    order.write(tmp_path)
    found = open_order(tmp_path)
    assert isinstance(found.tasks_T, np.memmap)
    assert [found.draw(position) for position in range(90)] == draws(mixture)
    assert [found.positions(step) for step in range(3)] == [range(30), range(30, 70), range(70, 90)]
    for before, after in zip(columns_of(order), columns_of(found), strict=True):
        assert (before.dtype, before.tolist()) == (after.dtype, after.tolist())


def columns_of(order: Order) -> list[np.ndarray]:
    return [order.tasks_T, order.indices_T, order.tokens_T, order.step_starts_S1]


def test_shares_that_never_change_are_served_alike_as_one_row_or_as_many() -> None:
    # Deadlines in whole positions order the same as deadlines between them, where no two fall into one position.
    shares = normalised(5.0, 3.0)
    rows = np.tile(shares, (80, 1))
    assert task_sequence(rows, length=80).tolist() == task_sequence(shares, length=80).tolist()


def test_stages_begin_and_end_at_their_positions_where_the_counts_are_whole_there() -> None:
    # Task 0 has 20 positions alone, then shares 45 with task 1 at 2 : 1, then task 1 is alone for 15. Counts 20 + 30
    # and 15 + 15 are whole at both borders, so that they are met exactly there.
    rows = np.repeat([[1.0, 0.0], [2 / 3, 1 / 3], [0.0, 1.0]], [20, 45, 15], axis=0)
    for lengths in (None, ([3] * 81, [3] * 81)):
        sequence = task_sequence(rows, length=80, lengths=lengths)
        assert (sequence[:20].tolist(), sequence[65:].tolist()) == ([0] * 20, [1] * 15)
        assert np.sum(sequence[20:65]) == 15


def test_tokens_are_served_in_the_order_worked_by_hand() -> None:
    # Half the tokens each; task 0 has examples of 2 tokens, task 1 of 6. In tokens served, the fluid begins and ends
    # the examples of task 0 at (0, 4), (4, 8), (8, 12), ..., of task 1 at (0, 12), (12, 24).
    # now 0: deadlines 4 and 12     -> 0
    # now 2: only task 1 has begun  -> 1
    # now 8: (4, 8); (12, 24) not   -> 0
    # now 10: (8, 12)               -> 0
    # now 12: (12, 16) and (12, 24) -> 0
    # now 14: (16, 20) not; (12, 24) -> 1; now 20: 0, 0, and at 24 all has been served evenly.
    sequence = task_sequence(normalised(1, 1), length=8, lengths=([2] * 9, [6] * 9))
    assert sequence.tolist() == [0, 1, 0, 0, 0, 1, 0, 0]


def test_a_task_with_long_examples_is_drawn_less_often_for_its_share_of_tokens() -> None:
    # Equal shares of tokens, examples of 10 and 30 tokens: three draws to one.
    tokens = [np.full(6, 10), np.full(6, 30)]
    mixture = Mixture(sizes=[6, 6], shares=normalised(1, 1), length=400, seed=SEED, example_tokens=tokens)
    assert counts(mixture) == [300, 100, 0]


def test_the_lengths_that_shares_are_kept_with_are_those_of_the_examples_drawn() -> None:
    generator = np.random.default_rng(3)
    tokens = [generator.integers(8, 400, size) for size in (9, 30, 4)]
    shares = normalised(1, 2, 3)
    mixture = Mixture(sizes=[9, 30, 4], shares=shares, length=500, seed=SEED, example_tokens=tokens)
    served_TK = np.zeros((500, 3))
    for position, draw in enumerate(draws(mixture)):
        served_TK[position, draw.task] = tokens[draw.task][draw.index]
    served_TK = np.cumsum(served_TK, axis=0)
    lags_TK = served_TK - shares * served_TK.sum(axis=1, keepdims=True)
    assert np.max(np.abs(lags_TK)) <= max(np.max(lengths) for lengths in tokens) + ROUNDING


def test_examples_without_tokens_are_refused() -> None:
    with pytest.raises(AssertionError, match="without tokens"):
        Mixture(sizes=[2], shares=normalised(1), length=4, seed=SEED, example_tokens=[np.array([3, 0])])


def test_shares_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(AssertionError):
        task_sequence(np.array([0.5, 0.4]), length=4)

"""Steps laid out one after the other keep the promise of the mixture and cut where their budget ends."""

import numpy as np
import pytest

from trainer.data.by_steps import lay_out_by_steps
from trainer.data.draws import example_order
from trainer.data.order import StepSize

SEED, NUM_STEPS = 17, 30
SIZES = {
    "tokens": StepSize(num_steps=NUM_STEPS, tokens=300),
    "rows": StepSize(num_steps=NUM_STEPS, rows=5, row_tokens=64),
}
LENGTHS = [np.random.default_rng(task).integers(3, 60, 40 + task) for task in range(3)]


@pytest.mark.parametrize("by_tokens", [False, True], ids=["examples", "tokens"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.9, 0.07, 0.03), (0.34, 0.33, 0.33)])
def test_shares_that_stay_are_kept_at_every_prefix(shares: tuple[float, ...], size: StepSize, by_tokens: bool) -> None:
    shares_SK = np.tile(shares, (NUM_STEPS, 1))
    laid = lay_out_by_steps(shares_SK, lengths=LENGTHS, cut=size.cut, by_tokens=by_tokens, seed=SEED)
    assert laid.step_starts_S1.tolist() == size.starts(np.append(laid.tokens_T, [60] * 9)).tolist()
    weights_T = laid.tokens_T if by_tokens else np.ones(len(laid.tokens_T))
    drawn_TK = np.where(laid.tasks_T[:, None] == np.arange(3), weights_T[:, None], 0.0)
    lags_TK = np.cumsum(weights_T[:, None] * np.array(shares) - drawn_TK, axis=0)
    # Tijdeman: 1 - 1 / (2 * 3 - 2). WF2Q: the longest example.
    assert np.abs(lags_TK).max() <= (laid.tokens_T.max() if by_tokens else 0.75) + 1e-6


def test_every_pass_over_a_task_is_that_of_the_draws() -> None:
    shares_SK = np.tile((0.5, 0.3, 0.2), (NUM_STEPS, 1))
    laid = lay_out_by_steps(shares_SK, lengths=LENGTHS, cut=SIZES["tokens"].cut, by_tokens=False, seed=SEED)
    for task, lengths in enumerate(LENGTHS):
        drawn = laid.indices_T[laid.tasks_T == task]
        orders = [example_order(len(lengths), task=task, epoch=epoch, seed=SEED) for epoch in range(9)]
        assert drawn.tolist() == np.concatenate(orders)[: len(drawn)].tolist()
        assert laid.tokens_T[laid.tasks_T == task].tolist() == lengths[drawn].tolist()


def test_a_task_that_begins_late_owes_and_is_owed_nothing(  # its clock begins with its first share
) -> None:
    shares_SK = np.array([[1.0, 0.0, 0.0]] * 10 + [[0.0, 0.5, 0.5]] * 10)
    laid = lay_out_by_steps(shares_SK, lengths=LENGTHS, cut=SIZES["tokens"].cut, by_tokens=False, seed=SEED)
    change = int(laid.step_starts_S1[10])
    assert set(laid.tasks_T[:change].tolist()) == {0}
    late = laid.tasks_T[change:].tolist()
    assert set(late) == {1, 2}
    assert abs(late.count(1) - late.count(2)) <= 1

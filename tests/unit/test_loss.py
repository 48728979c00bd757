"""Losses of targets against torch's own and against hand arithmetic; and the one normaliser.

Shapes: B examples, T positions, V classes.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.distributed import World
from trainer.loss import IGNORED, global_targets, normalised_loss, target_nll

# fp32 sums of at most thirty terms of size 5.
ROUNDING = 1e-6
ONE_RANK = World(0, 1, 0, torch.device("cpu"))
V = 11


def shifted(*rows: list[int]) -> Tensor:
    """Labels of each token as targets of the position before it, as a language model's collator makes them."""
    return torch.tensor([[*row[1:], IGNORED] for row in rows])


def random_batch(*, num_targets: list[int], width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids, and targets of rows whose last `num_targets` tokens are supervised."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, V, (len(num_targets), width), generator=generator)
    targets_BT = torch.full_like(ids_BT, IGNORED)
    for row, number in enumerate(num_targets):
        targets_BT[row, width - number - 1 : -1] = ids_BT[row, width - number :]
    return ids_BT, targets_BT


def bigram_weights() -> Tensor:
    return torch.randn(V, V, generator=torch.Generator().manual_seed(3), requires_grad=True)


def reference_loss(logits_BTV: Tensor, targets_BT: Tensor, *, reduction: str) -> Tensor:
    """torch's own."""
    logits_NV = logits_BTV.reshape(-1, logits_BTV.shape[-1])
    return F.cross_entropy(logits_NV, targets_BT.reshape(-1), ignore_index=IGNORED, reduction=reduction)


def test_a_flat_distribution_costs_the_logarithm_of_the_vocabulary_at_each_target() -> None:
    # 2 and 1 supervised tokens, over 4 words: 2 ln 4 and ln 4.
    targets_BT = shifted([IGNORED, IGNORED, 1, 2], [IGNORED, 3, IGNORED, IGNORED])
    nll_BT, supervised_BT = target_nll(torch.zeros(2, 4, 4), targets_BT)
    assert nll_BT.sum(dim=1).tolist() == pytest.approx([2 * math.log(4), math.log(4)], abs=ROUNDING)
    assert supervised_BT.sum(dim=1).tolist() == [2, 1]


def test_a_position_is_judged_by_its_target() -> None:
    # Position 0 says word 1 with odds 3 : 1, position 1 says word 0 with odds 7 : 1; the last one predicts nothing.
    # Targets 1, 1, none: -ln 3/4 at position 0, -ln 1/8 at position 1.
    logits_BTV = torch.tensor([[[0.0, math.log(3)], [math.log(7), 0.0], [math.log(99), 0.0]]])
    nll_BT, supervised_BT = target_nll(logits_BTV, shifted([IGNORED, 1, 1]))
    assert nll_BT[0].tolist() == pytest.approx([math.log(4 / 3), math.log(8), 0.0], abs=ROUNDING)
    assert supervised_BT.tolist() == [[True, True, False]]


def test_a_classifier_has_one_position_an_example() -> None:
    # Logits ln 3 : 0 give 3/4 and 1/4; the right classes are 0 and 1.
    logits_BTV = torch.tensor([[[math.log(3), 0.0]], [[math.log(3), 0.0]]])
    nll_BT, supervised_BT = target_nll(logits_BTV, torch.tensor([[0], [1]]))
    assert nll_BT.shape == (2, 1)
    assert nll_BT.flatten().tolist() == pytest.approx([math.log(4 / 3), math.log(4)], abs=ROUNDING)
    assert supervised_BT.tolist() == [[True], [True]]


def test_each_row_is_torchs_cross_entropy_of_that_row() -> None:
    ids_BT, targets_BT = random_batch(num_targets=[1, 4, 7, 9], width=10, seed=1)
    logits_BTV = bigram_weights().detach()[ids_BT]
    nll_BT, supervised_BT = target_nll(logits_BTV, targets_BT)
    for row, number in enumerate((1, 4, 7, 9)):
        wanted = reference_loss(logits_BTV[row : row + 1], targets_BT[row : row + 1], reduction="sum")
        assert nll_BT[row].sum().item() == pytest.approx(wanted.item(), rel=ROUNDING)
        assert supervised_BT[row].sum() == number


def test_scattered_labels_go_back_to_their_own_places() -> None:
    # Labels with gaps: the loss of every token has to return to the row and the position that it came from.
    targets_BT = shifted([IGNORED, 4, IGNORED, 5], [IGNORED, IGNORED, IGNORED, IGNORED], [IGNORED, IGNORED, 6, 7])
    logits_BTV = torch.randn(3, 4, V, generator=torch.Generator().manual_seed(5))
    nll_BT, supervised_BT = target_nll(logits_BTV, targets_BT)
    log_p = logits_BTV.log_softmax(-1)
    wanted_BT = torch.zeros(3, 4)
    for row, position, target in ((0, 0, 4), (0, 2, 5), (2, 1, 6), (2, 2, 7)):
        wanted_BT[row, position] = -log_p[row, position, target]
    assert torch.allclose(nll_BT, wanted_BT, rtol=0, atol=ROUNDING)
    assert torch.equal(supervised_BT, wanted_BT > 0)


def test_half_precision_logits_are_summed_in_fp32() -> None:
    ids_BT, targets_BT = random_batch(num_targets=[6, 3], width=8, seed=2)
    logits_BTV = bigram_weights().detach()[ids_BT].bfloat16()
    nll_BT, _ = target_nll(logits_BTV, targets_BT)
    assert nll_BT.dtype == torch.float32
    wanted = reference_loss(logits_BTV.float(), targets_BT, reduction="sum")
    assert nll_BT.sum().item() == pytest.approx(wanted.item(), rel=ROUNDING)


def test_a_row_without_targets_costs_nothing_and_receives_no_gradient() -> None:
    logits_BTV = torch.randn(2, 3, V, requires_grad=True)
    nll_BT, supervised_BT = target_nll(logits_BTV, shifted([IGNORED, 1, 2], [IGNORED] * 3))
    nll_BT.sum().backward()
    assert (nll_BT[1].tolist(), supervised_BT[1].tolist()) == ([0.0] * 3, [False] * 3)
    assert logits_BTV.grad is not None
    assert logits_BTV.grad[0].abs().sum() > 0
    assert torch.equal(logits_BTV.grad[1], torch.zeros(3, V))


@pytest.mark.parametrize("width", [1, 4])
def test_a_batch_without_any_target_still_takes_a_backward_pass_of_zeros(width: int) -> None:
    # Every rank has to enter the backward pass, or the others would wait for its gradients.
    logits_BTV = torch.randn(2, width, V, requires_grad=True)
    nll_BT, supervised_BT = target_nll(logits_BTV, torch.full((2, width), IGNORED))
    normalised_loss(nll_BT, world_size=2, num_targets=torch.tensor(5.0, dtype=torch.float64)).backward()
    assert (nll_BT.tolist(), supervised_BT.tolist()) == ([[0.0] * width] * 2, [[False] * width] * 2)
    assert logits_BTV.grad is not None
    assert torch.equal(logits_BTV.grad, torch.zeros(2, width, V))


def test_the_tokens_of_a_step_are_counted_over_all_microbatches() -> None:
    # 2 + 0 + (2 + 1).
    targets = [
        shifted([IGNORED, 1, 2]),
        shifted([IGNORED, IGNORED]),
        shifted([IGNORED, 1, 1], [IGNORED, IGNORED, 1]),
    ]
    total = global_targets(ONE_RANK, targets)
    assert (total.item(), total.dtype) == (5.0, torch.float64)


def gradient_of_mean_over_all(microbatches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The big batch: torch's mean over every supervised token at once."""
    weights = bigram_weights()
    logits_NV = torch.cat([weights[ids_BT].reshape(-1, V) for ids_BT, _ in microbatches])
    targets_N = torch.cat([targets_BT.reshape(-1) for _, targets_BT in microbatches])
    F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED).backward()
    assert weights.grad is not None
    return weights.grad


def accumulated_gradient(microbatches: list[tuple[Tensor, Tensor]], *, world_size: int, tokens: Tensor) -> Tensor:
    """What one rank's engine accumulates: it sums over micro-batches."""
    weights = bigram_weights()
    for ids_BT, targets_BT in microbatches:
        nll_BT, _ = target_nll(weights[ids_BT], targets_BT)
        normalised_loss(nll_BT, world_size=world_size, num_targets=tokens).backward()
    assert weights.grad is not None
    return weights.grad


def unequal_microbatches() -> list[tuple[Tensor, Tensor]]:
    """21, 2, 5 and 2 supervised tokens, of other widths and heights."""
    return [
        random_batch(num_targets=[9, 7, 5], width=10, seed=11),
        random_batch(num_targets=[1, 1], width=4, seed=12),
        random_batch(num_targets=[5], width=6, seed=13),
        random_batch(num_targets=[2, 0], width=5, seed=14),
    ]


def test_unequal_microbatches_accumulate_the_gradient_of_the_mean_over_all_tokens() -> None:
    microbatches = unequal_microbatches()
    tokens = global_targets(ONE_RANK, [targets_BT for _, targets_BT in microbatches])
    assert tokens.item() == 21 + 2 + 5 + 2
    found = accumulated_gradient(microbatches, world_size=1, tokens=tokens)
    assert torch.allclose(found, gradient_of_mean_over_all(microbatches), rtol=0, atol=ROUNDING)


def test_ranks_whose_gradients_are_averaged_take_the_same_step_as_one() -> None:
    # Two ranks hold 23 and 7 supervised tokens; an engine takes the mean of their gradients.
    microbatches = unequal_microbatches()
    tokens = torch.tensor(30.0, dtype=torch.float64)
    ranks = [accumulated_gradient(part, world_size=2, tokens=tokens) for part in (microbatches[:2], microbatches[2:])]
    mean = torch.stack(ranks).mean(dim=0)
    assert torch.allclose(mean, gradient_of_mean_over_all(microbatches), rtol=0, atol=ROUNDING)


def test_a_mean_of_means_would_be_another_gradient() -> None:
    # The mistake that the normaliser is there to avoid, so that the equalities above are seen to say something.
    microbatches = unequal_microbatches()
    weights = bigram_weights()
    for ids_BT, targets_BT in microbatches:
        (reference_loss(weights[ids_BT], targets_BT, reduction="mean") / len(microbatches)).backward()
    assert weights.grad is not None
    assert (weights.grad - gradient_of_mean_over_all(microbatches)).abs().max() > 1000 * ROUNDING


def test_the_normaliser_multiplies_by_the_ranks_and_divides_by_the_tokens_of_the_step() -> None:
    # (1.5 + 0 + 0.5 + 2) * 4 / 32 = 0.5, in the precision of the losses.
    nll_BT = torch.tensor([[1.5, 0.0], [0.5, 2.0]])
    loss = normalised_loss(nll_BT, world_size=4, num_targets=torch.tensor(32.0, dtype=torch.float64))
    assert (loss.item(), loss.dtype) == (0.5, torch.float32)

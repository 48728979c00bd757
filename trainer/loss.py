"""Losses of targets and the one normaliser. Shapes: B examples, T positions, V classes (the vocabulary).

The loss of an optimizer step is the mean over the targets of the *global* step:
all ranks, all micro-batches. Nothing else divides anywhere. A classifier has one
position an example.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.distributed import World

IGNORED = -100
"""Target of a position that carries no loss."""


def count_targets(targets_BT: Tensor) -> Tensor:
    """Positions that carry loss."""
    return (targets_BT != IGNORED).sum()


def target_nll(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target, in nats.

    Args:
        targets_BT: what the logits at the same position must give; IGNORED elsewhere.

    Returns:
        nll_BT: in fp32; 0 where there is no target.
        supervised_BT: where there is one.
    """
    supervised_BT = targets_BT != IGNORED
    # Positions without a target cost memory and time in the log-softmax: leave them out first.
    nll_N = F.cross_entropy(logits_BTV[supervised_BT].float(), targets_BT[supervised_BT], reduction="none")
    nll_BT = torch.zeros(targets_BT.shape, dtype=nll_N.dtype, device=nll_N.device)
    return nll_BT.masked_scatter(supervised_BT, nll_N), supervised_BT


def global_targets(world: World, targets_by_microbatch: list[Tensor]) -> Tensor:
    """Collective: targets of the whole optimizer step, over all ranks and micro-batches."""
    counts = [count_targets(targets_BT) for targets_BT in targets_by_microbatch]
    return world.sum(torch.stack(counts).sum().to(torch.float64).to(world.device))


def normalised_loss(nll_BT: Tensor, *, world_size: int, num_targets: Tensor) -> Tensor:
    """The scalar to call backward on.

    Engines average gradients over ranks. Multiplying by the world size turns that mean back into a sum, and
    dividing by the targets of the global step makes the sum the gradient of the mean target loss:
    (1/W) sum_r [ W * sum(nll_r) / N ] = sum(nll) / N.
    """
    return nll_BT.sum() * (world_size / num_targets).to(nll_BT.dtype)

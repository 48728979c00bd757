"""Token losses and the one normaliser. Shapes: B examples, T tokens, V vocabulary.

The loss of an optimizer step is the mean over the supervised tokens of the
*global* step: all ranks, all micro-batches. Nothing else divides anywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.distributed import World

IGNORED = -100
"""Label of a token that carries no loss."""


def count_target_tokens(labels_BT: Tensor) -> Tensor:
    """Supervised tokens after the shift: position t predicts token t + 1, so the first label never counts."""
    return (labels_BT[:, 1:] != IGNORED).sum()


def target_nll(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the labels, in nats, per example.

    Returns:
        nll_B: sum over the supervised tokens of each example, in fp32.
        tokens_B: how many there are.
    """
    targets_BT = labels_BT[:, 1:]
    supervised_BT = targets_BT != IGNORED
    # Rows without a label cost memory and time in the log-softmax: leave them out first.
    nll_N = F.cross_entropy(logits_BTV[:, :-1][supervised_BT].float(), targets_BT[supervised_BT], reduction="none")
    nll_BT = torch.zeros(targets_BT.shape, dtype=nll_N.dtype, device=nll_N.device)
    nll_BT = nll_BT.masked_scatter(supervised_BT, nll_N)
    return nll_BT.sum(dim=1), supervised_BT.sum(dim=1)


def global_target_tokens(world: World, labels_by_microbatch: list[Tensor]) -> Tensor:
    """Collective: supervised tokens of the whole optimizer step, over all ranks and micro-batches."""
    counts = [count_target_tokens(labels_BT) for labels_BT in labels_by_microbatch]
    return world.sum(torch.stack(counts).sum().to(torch.float64).to(world.device))


def normalised_loss(nll_B: Tensor, *, world_size: int, global_tokens: Tensor) -> Tensor:
    """The scalar to call backward on.

    Engines average gradients over ranks. Multiplying by the world size turns that mean back into a sum, and
    dividing by the tokens of the global step makes the sum the gradient of the mean token loss:
    (1/W) sum_r [ W * sum(nll_r) / N ] = sum(nll) / N.
    """
    return nll_B.sum() * (world_size / global_tokens).to(nll_B.dtype)

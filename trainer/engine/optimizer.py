"""AdamW over the trainable weights, the same under both engines; in 8 bits by bitsandbytes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit
from torch import Tensor

from trainer.config.schema import SMALLEST_8BIT_ELEMENTS, TrainingSection


def adamw(
    model: torch.nn.Module, training: TrainingSection, *, num_axes: Callable[[torch.nn.Parameter], int]
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) in two groups: matrices decay, vectors (biases, norm weights) do not.

    Args:
        num_axes: axes of the whole parameter. Under ZeRO-3 every parameter looks like an empty vector.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if num_axes(p) >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trainable if num_axes(p) < 2], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
    }
    filled = [group for group in groups if group["params"]]
    match training.optimizer:
        case "adamw":
            return torch.optim.AdamW(filled, **settings)
        case "adamw_8bit":
            return AdamW8bit(filled, min_8bit_size=SMALLEST_8BIT_ELEMENTS, **settings)


def refuse_wide_moments(optimizer: torch.optim.Optimizer) -> None:
    """After a step of adamw_8bit: both moments of every large tensor are really bytes.

    Raises:
        RuntimeError: some are not; the memory that was asked for would not be saved.
    """
    for parameter, state in optimizer.state.items():
        wide = [name for name in ("state1", "state2") if state[name].dtype != torch.uint8]
        if parameter.numel() >= SMALLEST_8BIT_ELEMENTS and wide:
            raise RuntimeError(
                f"training.optimizer: adamw_8bit, but {wide[0]} of a tensor of shape {tuple(parameter.shape)} "
                f"is {state[wide[0]].dtype}"
            )


def global_norm(gradients: Iterable[Tensor]) -> Tensor:
    """L2 norm of all gradients as one vector, summed in fp64.

    In fp32 the sum over a large tensor loses five digits on a CPU, and the norm would depend on the layout.
    """
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))

"""AdamW over the trainable weights, the same under both engines."""

from collections.abc import Callable

import torch

from trainer.config.schema import TrainingSection


def adamw(
    model: torch.nn.Module, training: TrainingSection, *, num_axes: Callable[[torch.nn.Parameter], int]
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) in two groups: matrices decay, vectors (biases, norm weights) do not.

    Args:
        num_axes: axes of the whole parameter. Under ZeRO-3 every parameter looks like an empty vector.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if num_axes(p) >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trainable if num_axes(p) < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
    )

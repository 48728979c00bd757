"""Faults to plant: each breaks one promise of the training core, and some test must see it.

Every fault is a context manager over the trainer's own functions; nothing of them is in the product.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint

from tests.packing_faults import rows_see_across
from trainer.data.collate import Batch, Item, collate
from trainer.loss import count_targets, target_nll


@contextmanager
def own_normaliser() -> Iterator[None]:
    """Each rank divides by its own targets, as a mean over means does."""

    def targets_of_this_rank_only(world: Any, targets_by_microbatch: list[torch.Tensor]) -> torch.Tensor:
        return (sum(count_targets(targets_BT) for targets_BT in targets_by_microbatch) * world.size).double()

    with patch("trainer.loop.global_targets", targets_of_this_rank_only):
        yield


@contextmanager
def mean_of_four_means() -> Iterator[None]:
    """Each of four micro-batches divides by its own targets: the accumulation bug of many trainers."""
    supervised_BT = torch.zeros(1, 1)

    def remembered(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal supervised_BT
        nll_BT, supervised_BT = target_nll(logits_BTV, targets_BT)
        return nll_BT, supervised_BT

    def own_mean(nll_BT: torch.Tensor, *, world_size: int, num_targets: torch.Tensor) -> torch.Tensor:
        return nll_BT.sum() / supervised_BT.sum() / 4

    with patch("trainer.loop.target_nll", remembered), patch("trainer.loop.normalised_loss", own_mean):
        yield


@contextmanager
def pads_are_read() -> Iterator[None]:
    """Padding is attended to, and learnt by a language model."""

    def careless(rows: Sequence[Sequence[Item]], *, pad_token_id: int, **options: Any) -> Batch:
        batch = collate(rows, pad_token_id=pad_token_id, **options)
        targets_BT = batch.targets_BT
        if targets_BT.shape[1] > 1:
            targets_BT = torch.where(batch.attention_mask_BT == 0, pad_token_id, targets_BT)
        return replace(batch, attention_mask_BT=torch.ones_like(batch.attention_mask_BT), targets_BT=targets_BT)

    with patch("trainer.data.collate.collate", careless):
        yield


@contextmanager
def other_dropout_when_recomputed() -> Iterator[None]:
    """Activation checkpointing forgets the random state: the backward pass sees another dropout mask."""
    checkpoint = torch.utils.checkpoint.checkpoint

    def forgetful(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return checkpoint(function, *arguments, **{**options, "preserve_rng_state": False})

    with patch("transformers.modeling_utils.checkpoint", forgetful):
        yield


@contextmanager
def measuring_leaves_a_trace() -> Iterator[None]:
    """A measurement gives back neither the random state nor the training mode."""
    with patch("trainer.evaluation.measure.untouched", lambda engine: nullcontext(engine.model.eval())):
        yield


@contextmanager
def wrong_scale_of_int8() -> Iterator[None]:
    """The scales of an 8-bit base are 5 % off."""
    from bitsandbytes.nn import Linear8bitLt

    import trainer.worker

    load_model = trainer.worker.load_model

    def load_and_spoil(*arguments: Any) -> Any:
        model = load_model(*arguments)
        for layer in model.modules():
            if isinstance(layer, Linear8bitLt):
                layer.weight.SCB.mul_(1.05)
        return model

    with patch("trainer.worker.load_model", load_and_spoil):
        yield


@contextmanager
def enormous_loss_scale() -> Iterator[None]:
    """fp16 starts with a scale under which gradients overflow: the one fault that a run must survive."""
    with patch("trainer.engine.scaling.FIRST_SCALE", 2.0**40):
        yield


FAULTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "": nullcontext,
    "own normaliser": own_normaliser,
    "mean of four means": mean_of_four_means,
    "pads are read": pads_are_read,
    "rows see across": rows_see_across,
    "other dropout when recomputed": other_dropout_when_recomputed,
    "measuring leaves a trace": measuring_leaves_a_trace,
    "wrong scale of int8": wrong_scale_of_int8,
    "enormous loss scale": enormous_loss_scale,
}

"""Engine over accelerate: one process, or DDP. The only file that knows accelerate."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.config.errors import NonFiniteError
from trainer.config.plan import Plan
from trainer.data.collate import Batch
from trainer.distributed import World
from trainer.engine.generation import greedy_continuation
from trainer.engine.optimizer import adamw
from trainer.model import frozen_base

OPTIMIZER_FILE = "optimizer.pt"


class PlainEngine:
    """Every rank holds the whole model."""

    def __init__(self, model: Any, *, plan: Plan, world: World) -> None:
        """Wrap a model. accelerate is told to accumulate over 1 micro-batch, so that it never divides a loss."""
        training = plan.config.training
        self.world = world
        self._max_gradient_norm = training.max_gradient_norm
        self._accelerator = Accelerator(
            cpu=plan.device == "cpu",
            mixed_precision="bf16" if training.precision == "bf16" else "no",
            gradient_accumulation_steps=1,
        )
        if self._accelerator.num_processes != world.size:
            raise RuntimeError(f"accelerate sees {self._accelerator.num_processes} ranks, the plan says {world.size}")
        optimizer = adamw(model, training, num_axes=torch.Tensor.dim)
        self.model = model
        self._wrapped, self._optimizer = self._accelerator.prepare(model, optimizer)

    @contextmanager
    def microstep(self, *, last: bool) -> Iterator[None]:
        """See Engine."""
        if last:
            yield
        else:
            with self._accelerator.no_sync(self._wrapped):
                yield

    def forward(self, batch: Batch) -> Tensor:
        """See Engine."""
        return self._wrapped(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False
        ).logits

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        self._accelerator.backward(loss)

    def apply(self, *, learning_rate: float) -> float:
        """See Engine."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = float(self._accelerator.clip_grad_norm_(self._wrapped.parameters(), self._max_gradient_norm))
        if not math.isfinite(norm):
            raise NonFiniteError(f"gradient norm is {norm}")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def generate(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, max_new_tokens: int) -> Tensor:
        """See Engine."""
        return greedy_continuation(
            self.model, input_ids_BT, attention_mask_BT, max_new_tokens=max_new_tokens, synced_gpus=False
        )

    def gather_weights(self) -> dict[str, Tensor]:
        """See Engine."""
        if not self.world.is_main:
            return {}
        left_out = frozen_base(self.model)
        return {name: tensor.cpu() for name, tensor in self.model.state_dict().items() if name not in left_out}

    def save(self, folder: Path) -> None:
        """See Engine. All ranks hold the same state: the main one writes it."""
        if self.world.is_main:
            torch.save(self._optimizer.optimizer.state_dict(), folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> None:
        """See Engine."""
        state = torch.load(folder / OPTIMIZER_FILE, map_location=self.world.device, weights_only=True)
        self._optimizer.optimizer.load_state_dict(state)

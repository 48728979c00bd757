"""Engine over accelerate: one process, or DDP. The only file that knows accelerate."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor
from transformers import DynamicCache

from trainer.config.errors import NonFiniteError
from trainer.config.plan import Plan
from trainer.data.collate import Batch
from trainer.distributed import World
from trainer.engine.forward import CachedRows, cache_obstacle, cached_logits_of, logits_of
from trainer.engine.generation import greedy_continuation
from trainer.engine.optimizer import adamw, global_norm, refuse_wide_moments
from trainer.engine.scaling import LossScale
from trainer.model import COMPUTE_DTYPES, frozen_base, tied_names

OPTIMIZER_FILE = "optimizer.pt"


class PlainEngine:
    """Every rank holds the whole model."""

    def __init__(self, model: Any, *, plan: Plan, world: World) -> None:
        """Wrap a model.

        accelerate is told to accumulate over 1 micro-batch, so that it never divides a loss, and nothing of the
        precision: on a CPU it would take fp16 for fp32 without a word. Gradients live in the buckets of DDP.
        """
        self._training, self._objective = plan.config.training, plan.config.objective
        self._attention = plan.config.model.attention
        self.world = world
        self.loss_scale = LossScale(self._training.precision)
        self._accelerator = Accelerator(
            cpu=plan.device == "cpu",
            mixed_precision="no",
            gradient_accumulation_steps=1,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        if self._accelerator.num_processes != world.size:
            raise RuntimeError(f"accelerate sees {self._accelerator.num_processes} ranks, the plan says {world.size}")
        self._optimizer = adamw(model, self._training, num_axes=torch.Tensor.dim)
        self.model = model
        self.cache_obstacle = cache_obstacle(model.config, attention=self._attention)
        self._wrapped = self._accelerator.prepare(model)

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
        with self._autocast():
            return logits_of(self._wrapped, batch, objective=self._objective, attention=self._attention)

    def forward_cached(self, rows: CachedRows, cache: DynamicCache | None = None) -> Tensor:
        """See Engine. Past DDP, which has nothing to reduce here."""
        with torch.no_grad(), self._autocast():
            return cached_logits_of(self.model, rows, cache, attention=self._attention)

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        (loss * self.loss_scale.value).backward()

    def apply(self, *, learning_rate: float) -> float | None:
        """See Engine."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(global_norm(gradients)) / self.loss_scale.value
        if not math.isfinite(norm):
            if not self.loss_scale.is_dynamic:
                raise NonFiniteError(f"gradient norm is {norm}")
            self.loss_scale.overflowed()
            self._optimizer.zero_grad(set_to_none=True)
            return None
        # The same clipping as torch and DeepSpeed: 1e-6 keeps a norm of zero from dividing.
        factor = min(1.0, self._training.max_gradient_norm / (norm + 1e-6)) / self.loss_scale.value
        for gradient in gradients:
            gradient.mul_(factor)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        if self._training.optimizer == "adamw_8bit":
            refuse_wide_moments(self._optimizer)
        self._optimizer.zero_grad(set_to_none=True)
        self.loss_scale.stepped()
        return norm

    def generate(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, max_new_tokens: int) -> Tensor:
        """See Engine."""
        with self._autocast():
            return greedy_continuation(
                self.model, input_ids_BT, attention_mask_BT, max_new_tokens=max_new_tokens, synced_gpus=False
            )

    def gather_weights(self) -> dict[str, Tensor]:
        """See Engine."""
        if not self.world.is_main:
            return {}
        left_out = frozen_base(self.model) | tied_names(self.model)
        return {name: tensor.cpu() for name, tensor in self.model.state_dict().items() if name not in left_out}

    def save(self, folder: Path) -> None:
        """See Engine. All ranks hold the same state: the main one writes it."""
        if self.world.is_main:
            state = {"optimizer": self._optimizer.state_dict(), "loss_scale": self.loss_scale.state()}
            torch.save(state, folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> None:
        """See Engine."""
        state = torch.load(folder / OPTIMIZER_FILE, map_location=self.world.device, weights_only=True)
        self._optimizer.load_state_dict(state["optimizer"])
        self.loss_scale.restore(state["loss_scale"])

    def _autocast(self) -> torch.autocast:
        precision = self._training.precision
        return torch.autocast(self.world.device.type, COMPUTE_DTYPES[precision], enabled=precision != "fp32")

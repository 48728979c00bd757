"""A model on one device that is asked and never trained: the measuring half of an engine."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from trainer.config.schema import Objective, Precision
from trainer.data.collate import Batch
from trainer.distributed import World
from trainer.engine.forward import CachedRows, cache_obstacle, cached_logits_of, logits_of
from trainer.engine.generation import greedy_continuation
from trainer.model import COMPUTE_DTYPES


class InferenceEngine:
    """See `Scorer`."""

    def __init__(self, model: Any, *, objective: Objective, attention: str, precision: Precision, device: str) -> None:
        """Put a model on its device."""
        self.world = World(0, 1, 0, self.device(device))
        self.model = model.to(self.world.device)
        self.cache_obstacle = cache_obstacle(model.config, attention=attention)
        self._objective, self._attention, self._precision = objective, attention, precision

    @staticmethod
    def device(name: str) -> torch.device:
        """The first device of a kind."""
        return torch.device("cuda", 0) if name == "cuda" else torch.device(name)

    def forward(self, batch: Batch) -> Tensor:
        """See `Scorer`."""
        with torch.no_grad(), self._autocast():
            return logits_of(self.model, batch, objective=self._objective, attention=self._attention)

    def forward_cached(self, rows: CachedRows, cache: DynamicCache | None = None) -> Tensor:
        """See `Scorer`."""
        with torch.no_grad(), self._autocast():
            return cached_logits_of(self.model, rows, cache, attention=self._attention)

    def generate(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, max_new_tokens: int) -> Tensor:
        """See `Scorer`."""
        with self._autocast():
            return greedy_continuation(
                self.model, input_ids_BT, attention_mask_BT, max_new_tokens=max_new_tokens, synced_gpus=False
            )

    def _autocast(self) -> torch.autocast:
        enabled = self._precision != "fp16"
        return torch.autocast(self.world.device.type, COMPUTE_DTYPES[self._precision], enabled=enabled)

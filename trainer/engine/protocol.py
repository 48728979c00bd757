"""What the loop needs from a parallelism backend, and nothing more. All methods are collective."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import DynamicCache

from trainer.data.collate import Batch
from trainer.distributed import World
from trainer.engine.forward import CachedRows
from trainer.engine.scaling import LossScale


class Scorer(Protocol):
    """One model that can be asked, on one rank or spread over all of them."""

    world: World
    model: Any
    """The module as transformers or peft made it; its parameters may be partitioned."""

    cache_obstacle: str | None
    """Why `forward_cached` cannot be used with this model, as half a sentence; None where it can."""

    def forward(self, batch: Batch) -> Tensor:
        """logits_BTV of a batch on this rank's device; T is 1 for a classifier."""
        ...

    def forward_cached(self, rows: CachedRows, cache: DynamicCache | None = None) -> Tensor:
        """logits_BKV of rows on this rank's device, in the precision of `forward`; never trains.

        Args:
            cache: keys and values of what the rows go on from, of as many rows; those of the rows are appended to it.
                None where they begin here and nothing goes on from them.
        """
        ...

    def generate(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, max_new_tokens: int) -> Tensor:
        """Greedy continuations of left-padded prompts: the new ids only, shape (B, at most max_new_tokens)."""
        ...


class Engine(Scorer, Protocol):
    """One model, its gradients and its optimizer, spread over all ranks."""

    loss_scale: LossScale

    def microstep(self, *, last: bool) -> AbstractContextManager[None]:
        """Around one forward and backward; gradients are summed over ranks only in the last of a step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`. Never rescales it, but for the loss scale of fp16, which `apply` undoes."""
        ...

    def apply(self, *, learning_rate: float) -> float | None:
        """Clip by the global norm, step, zero the gradients.

        Returns:
            The global L2 norm before clipping. None where gradients overflowed in fp16: no weight was touched, the
            loss scale is halved, and the step is to be taken again.

        Raises:
            NonFiniteError: the norm is not finite; on every rank, and no weight was touched.
        """
        ...

    def gather_weights(self) -> dict[str, Tensor]:
        """Weights by name without the frozen base of adapters, whole, on the CPU of the main rank; empty elsewhere."""
        ...

    def save(self, folder: Path) -> None:
        """Write optimizer (and partitioned weight) state into a folder that exists on every rank."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote with the same layout; weights of `plain` are loaded before the engine is made."""
        ...

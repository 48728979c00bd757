"""Engine over native DeepSpeed: ZeRO stages 1, 2 and 3. The only file that knows deepspeed.

Run as a program (`python -m trainer.engine.zero`) it compiles the operators that
DeepSpeed would otherwise compile inside the first training process.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from torch import Tensor, no_grad
from transformers import DynamicCache
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from trainer.config.deepspeed import deepspeed_config
from trainer.config.errors import NonFiniteError
from trainer.config.plan import Plan
from trainer.config.run_folder import write_json
from trainer.data.collate import Batch
from trainer.distributed import World
from trainer.engine.forward import CachedRows, cache_obstacle, cached_logits_of, logits_of
from trainer.engine.generation import greedy_continuation
from trainer.engine.optimizer import adamw
from trainer.engine.scaling import LossScale
from trainer.model import frozen_base, tied_names

TAG = "engine"
LOSS_SCALE_FILE = "loss_scale.json"


@contextmanager
def partitioned_loading(plan: Plan) -> Iterator[None]:
    """Inside, transformers loads weights straight into ZeRO-3 partitions: no rank ever holds the whole model.

    transformers finds the configuration through a global weak reference, so it lives exactly as long as this block.
    """
    if plan.zero_stage < 3:
        yield
        return
    _join(plan)  # before the weights: a partition needs to know among how many ranks
    holder = HfDeepSpeedConfig(deepspeed_config(plan))
    yield
    del holder


def _join(plan: Plan) -> None:
    """Tell DeepSpeed about the process group that exists already. Once or twice is the same."""
    deepspeed.init_distributed(dist_backend="nccl" if plan.device == "cuda" else "gloo", verbose=False)


def _num_axes(parameter: Any) -> int:
    return len(parameter.ds_shape) if is_zero_param(parameter) else parameter.dim()


def _refuse_non_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise NonFiniteError(f"gradient norm is {norm}")


class ZeroEngine:
    """Optimizer states (stage 1), gradients (2) and weights (3) are partitioned over the ranks."""

    def __init__(self, model: Any, *, plan: Plan, world: World) -> None:
        """Wrap a model.

        Raises:
            RuntimeError: DeepSpeed sees another number of ranks than the plan says.
        """
        training = plan.config.training
        self.world = world
        self.loss_scale = LossScale(training.precision)
        self.model = model
        self._objective, self._attention = plan.config.objective, plan.config.model.attention
        self.cache_obstacle = cache_obstacle(model.config, attention=self._attention)
        self._stage = plan.zero_stage
        self._frozen_left_out = plan.config.method == "lora"
        _join(plan)
        optimizer = adamw(model, training, num_axes=_num_axes)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(plan))
        if self._engine.world_size != world.size:
            raise RuntimeError(f"DeepSpeed sees {self._engine.world_size} ranks, the plan says {world.size}")
        self._tell_loss_scale()
        # DeepSpeed computes the norm and steps in one call, and not every stage looks at the norm in between.
        optimizer.register_step_pre_hook(lambda *_: _refuse_non_finite(float(self._engine.optimizer._global_grad_norm)))

    @contextmanager
    def microstep(self, *, last: bool) -> Iterator[None]:
        """See Engine. DeepSpeed counts its micro-steps in `step`, which `apply` calls for the last one."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield
        if not last:
            self._engine.step()

    def forward(self, batch: Batch) -> Tensor:
        """See Engine."""
        return logits_of(self._engine, batch, objective=self._objective, attention=self._attention)

    def forward_cached(self, rows: CachedRows, cache: DynamicCache | None = None) -> Tensor:
        """See Engine. Through DeepSpeed, whose hooks make each module's weights whole under stage 3."""
        with no_grad():
            return cached_logits_of(self._engine, rows, cache, attention=self._attention)

    def backward(self, loss: Tensor) -> None:
        """See Engine. DeepSpeed would divide by the accumulation steps unless told not to."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def apply(self, *, learning_rate: float) -> float | None:
        """See Engine."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if self.loss_scale.is_dynamic and not math.isfinite(norm):
            self.loss_scale.overflowed()
            self._tell_loss_scale()
            return None
        _refuse_non_finite(norm)  # DeepSpeed leaves such a step out without a word, and would go on
        self.loss_scale.stepped()
        self._tell_loss_scale()
        return norm

    def _tell_loss_scale(self) -> None:
        """Ours is in force: DeepSpeed's divides by the grown scale what was multiplied by the smaller one."""
        if self.loss_scale.is_dynamic:
            self._engine.optimizer.override_loss_scale(self.loss_scale.value)

    def generate(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, max_new_tokens: int) -> Tensor:
        """See Engine."""
        return greedy_continuation(
            self.model,
            input_ids_BT,
            attention_mask_BT,
            max_new_tokens=max_new_tokens,
            synced_gpus=self._stage == 3 and self.world.size > 1,
        )

    def gather_weights(self) -> dict[str, Tensor]:
        """See Engine. Under stage 3 one weight at a time is whole, and only the main rank keeps it."""
        left_out = frozen_base(self.model) | tied_names(self.model)
        gathered: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if name in left_out:
                continue
            with deepspeed.zero.GatheredParameters([tensor]) if self._stage == 3 else nullcontext():
                if self.world.is_main:
                    gathered[name] = tensor.detach().cpu().clone()
        return gathered

    def save(self, folder: Path) -> None:
        """See Engine."""
        self._engine.save_checkpoint(
            str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=self._frozen_left_out
        )
        if self.world.is_main:
            write_json(folder / LOSS_SCALE_FILE, self.loss_scale.state())

    def load(self, folder: Path) -> None:
        """See Engine.

        Raises:
            RuntimeError: DeepSpeed found no state there.
        """
        path, _ = self._engine.load_checkpoint(
            str(folder), tag=TAG, load_module_strict=not self._frozen_left_out, load_lr_scheduler_states=False
        )
        if path is None:
            raise RuntimeError(f"DeepSpeed found no state in {folder}")
        self.loss_scale.restore(json.loads((folder / LOSS_SCALE_FILE).read_text(encoding="utf-8")))
        self._tell_loss_scale()


def build_operators() -> None:
    """Compile what `deepspeed.init_distributed` needs on this machine, if it is not compiled yet."""
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and builder.is_compatible():
        builder.load(verbose=False)


if __name__ == "__main__":
    build_operators()

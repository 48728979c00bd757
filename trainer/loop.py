"""The training loop: what one optimizer step does on every rank.

Shapes: B examples, T tokens, V vocabulary, K tasks. Every line runs on every rank
unless it says otherwise.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config.errors import NonFiniteError
from trainer.config.schema import TrainingSection
from trainer.data.collate import Batch, StepBatches
from trainer.engine.protocol import Engine
from trainer.loss import global_targets, normalised_loss, target_nll
from trainer.schedule import learning_rate_at


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step, as all ranks agree on it."""

    step: int
    """Completed optimizer steps, this one included."""

    loss: float
    """Mean over the targets of the global step: nats per token, or per example of a classifier."""

    gradient_norm: float
    """Global L2 norm before clipping."""

    learning_rate: float
    nll_K: Tensor
    """Summed nats of each task."""

    targets_K: Tensor
    """Targets of each task: supervised tokens, or examples of a classifier."""

    num_tokens: int
    """Real tokens, prompts included, padding excluded."""

    loss_scale: float
    """1 unless gradients are fp16."""

    num_overflows: int
    """How often the step was taken again because fp16 gradients overflowed."""

    seconds: float
    """Wall time of the step."""

    stop: bool
    """Some rank was asked to stop."""

    pulse: bool
    """The main rank wants a small measurement now."""


def train(
    engine: Engine,
    batches: StepBatches,
    *,
    training: TrainingSection,
    first_step: int,
    num_tasks: int,
    stop_requested: Callable[[], bool],
    pulse_due: Callable[[], bool],
    on_step: Callable[[StepResult], None],
    on_batches: Callable[[int, Sequence[Batch]], None] | None = None,
) -> StepResult | None:
    """Collective: take the remaining optimizer steps.

    Args:
        first_step: completed steps of the run so far.
        stop_requested: asked on each rank after each step; one yes stops all ranks together.
        pulse_due: asked on each rank after each step; what the main rank says is told in `StepResult.pulse`.
        on_step: called on every rank after each step, in the same order: logging, measurements, checkpoints.
        on_batches: told what this rank is about to train on in a step (from 0).

    Returns:
        The last step taken, with `stop` set if the run was asked to stop; None if none was left.

    Raises:
        NonFiniteError: a loss or a gradient norm is not finite; the weights are those of the step before.
    """
    result = None
    engine.model.train()
    for step in range(first_step, training.num_steps):
        microbatches = batches.at(step)
        if on_batches is not None:
            on_batches(step, microbatches)
        result = train_step(
            engine,
            microbatches,
            step=step,
            learning_rate=_learning_rate(step, training),
            num_tasks=num_tasks,
            stop_requested=stop_requested,
            pulse_due=pulse_due,
        )
        on_step(result)
        if result.stop:
            break
    return result


def train_step(
    engine: Engine,
    microbatches: Sequence[Batch],
    *,
    step: int,
    learning_rate: float,
    num_tasks: int,
    stop_requested: Callable[[], bool],
    pulse_due: Callable[[], bool],
) -> StepResult:
    """Collective: one optimizer step over the micro-batches of all ranks."""
    started = time.perf_counter()
    device = engine.world.device
    num_targets = global_targets(engine.world, [batch.targets_BT for batch in microbatches])
    norm, num_overflows = None, -1
    while norm is None:  # once, but for fp16: a step whose gradients overflow is taken again with a smaller scale
        num_overflows += 1
        sums_K2 = accumulate_gradients(engine, microbatches, num_tasks=num_tasks, num_targets=num_targets)
        num_tokens = sum(batch.num_tokens for batch in microbatches)
        wishes = [float(stop_requested()), float(engine.world.is_main and pulse_due())]
        others = torch.tensor([num_tokens, *wishes], dtype=torch.float64, device=device)
        sums = engine.world.sum(torch.cat([sums_K2.flatten(), others])).cpu()  # the one host sync of a step
        nll_K, targets_K = sums[:-3].view(num_tasks, 2).unbind(1)
        loss = float(nll_K.sum() / targets_K.sum())
        if not torch.isfinite(sums).all():
            raise NonFiniteError(f"step {step + 1}: the loss is {loss}; the optimizer did not step")
        try:
            norm = engine.apply(learning_rate=learning_rate)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step + 1}: {error} (loss {loss:.4f}); the optimizer did not step") from None
    return StepResult(
        step=step + 1,
        loss=loss,
        gradient_norm=norm,
        learning_rate=learning_rate,
        nll_K=nll_K,
        targets_K=targets_K,
        num_tokens=int(sums[-3]),
        loss_scale=engine.loss_scale.value,
        num_overflows=num_overflows,
        seconds=time.perf_counter() - started,
        stop=bool(sums[-2] > 0),
        pulse=bool(sums[-1] > 0),
    )


def accumulate_gradients(
    engine: Engine, microbatches: Sequence[Batch], *, num_tasks: int, num_targets: Tensor
) -> Tensor:
    """Collective: forward and backward over this rank's micro-batches; summed nats and targets of each task, (K, 2)."""
    device = engine.world.device
    sums_K2 = torch.zeros(num_tasks, 2, dtype=torch.float64, device=device)
    for index, cpu_batch in enumerate(microbatches):
        batch = cpu_batch.to(device)
        with engine.microstep(last=index == len(microbatches) - 1):
            nll_BT, supervised_BT = target_nll(engine.forward(batch), batch.targets_BT)
            engine.backward(normalised_loss(nll_BT, world_size=engine.world.size, num_targets=num_targets))
        sums_BT2 = torch.stack([nll_BT.detach().double(), supervised_BT.double()], dim=-1)
        sums_K2.index_add_(0, batch.tasks_BT.flatten(), sums_BT2.flatten(0, 1))
    return sums_K2


def _learning_rate(step: int, training: TrainingSection) -> float:
    return learning_rate_at(
        step,
        peak=training.learning_rate,
        num_steps=training.num_steps,
        warmup_steps=training.warmup_steps,
        final_share=training.final_learning_rate_share,
        schedule=training.schedule,
    )

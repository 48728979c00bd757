"""The story of a run, for people and for tools: lines on the screen, metrics.jsonl, TensorBoard.

Window numbers (tokens per second, loss per task) are sums over the steps since the
last logged one, divided once; time spent in checkpoints and evaluations is not in them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.config.plan import Plan
from trainer.console import Screen
from trainer.evaluation.suite import EvaluationTask
from trainer.loop import StepResult
from trainer.metrics import Metrics
from trainer.run_data import RunData


class Journal:
    """Fed by every rank in the same order; speaks and writes on the main one."""

    def __init__(self, plan: Plan, screen: Screen, metrics: Metrics | None, *, first_step: int, data: RunData) -> None:
        self._plan, self._screen, self._metrics = plan, screen, metrics
        self._task_names = list(plan.config.data.tasks)
        self._step = first_step
        self._measured: dict[str, float] = {}
        self._start_window()
        screen.say(f"mixture: {_in_words(data)}")
        if metrics is not None and first_step == 0:
            decisions = [f"- `{d.field}`: {d.asked} -> **{d.used}** ({d.reason})" for d in plan.decisions]
            metrics.write_text("decisions", "\n".join(decisions) or "none")
            counts = (plan.memory.num_trainable_parameters, plan.memory.num_parameters)
            metrics.write_text("parameters", f"{counts[0]:,} of {counts[1]:,} trained ({counts[0] / counts[1]:.2%})")
            metrics.write_text("configuration", f"```json\n{plan.config.model_dump_json(indent=2)}\n```")

    def _start_window(self) -> None:
        self._seconds, self._num_tokens, self._steps = 0.0, 0, 0
        self._nll_K = torch.zeros(len(self._task_names), dtype=torch.float64)
        self._targets_K = torch.zeros_like(self._nll_K)

    def begin_measurement(self, when: str, tasks: Sequence[EvaluationTask]) -> None:
        """A measurement of all tasks begins."""
        self._measured = {}
        self._screen.say(f"measuring {when}: {len(tasks)} tasks")
        self._screen.start_progress(f"measure {when}", total=len(tasks))

    def measured(self, name: str, value: float) -> None:
        """One task is measured; the last one closes the bar and writes all numbers."""
        self._measured[name] = value
        self._screen.advance(len(self._measured), note=f"{name} {value:.3f}")
        if self._metrics is not None:
            self._metrics.write(self._step, {f"heldout/{name}": value})

    def begin_training(self) -> None:
        """Steps follow."""
        self._screen.end_progress()
        self._screen.start_progress("train", total=self._plan.config.training.num_steps, completed=self._step)

    def step(self, result: StepResult) -> None:
        """After each optimizer step."""
        self._step = result.step
        self._seconds += result.seconds
        self._num_tokens += result.num_tokens
        self._steps += 1
        self._nll_K += result.nll_K
        self._targets_K += result.targets_K
        training = self._plan.config.training
        self._screen.advance(result.step, note=f"loss {result.loss:.4f}")
        if result.num_overflows:
            self._screen.say(
                f"step {result.step}: fp16 gradients overflowed {result.num_overflows} time(s); the step was taken "
                f"again with loss scale {result.loss_scale:g}"
            )
        if result.step == 1 or result.step % training.log_every_steps == 0 or result.step == training.num_steps:
            self._log(result)
            self._start_window()

    def _log(self, result: StepResult) -> None:
        tokens_per_second = self._num_tokens / self._seconds
        values = {
            "train/loss": result.loss,
            "train/gradient_norm": result.gradient_norm,
            "train/learning_rate": result.learning_rate,
            "speed/tokens_per_second": tokens_per_second,
            "speed/seconds_per_step": self._seconds / self._steps,
        }
        if self._plan.config.training.precision == "fp16":
            values["train/loss_scale"] = result.loss_scale
        for name, nll, targets in zip(self._task_names, self._nll_K.tolist(), self._targets_K.tolist(), strict=True):
            if targets:
                values[f"train_task_loss/{name}"] = nll / targets
        if self._metrics is not None:
            self._metrics.write(result.step, values)
        remaining = (self._plan.config.training.num_steps - result.step) * self._seconds / self._steps
        self._screen.say(
            f"step {result.step:>6}/{self._plan.config.training.num_steps}  loss {result.loss:.4f}  "
            f"gradient norm {result.gradient_norm:.3f}  learning rate {result.learning_rate:.2e}  "
            f"{tokens_per_second:,.0f} tokens/s  ETA {remaining:.0f} s"
        )

    def saved(self, path: Path) -> None:
        """A checkpoint is complete."""
        self._screen.say(f"checkpoint {path.parent.name}/{path.name} is complete")

    def end_training(self) -> None:
        """No more steps."""
        self._screen.end_progress()

    def close(self) -> None:
        """Flush everything."""
        self._screen.end_progress()
        if self._metrics is not None:
            self._metrics.close()


def _in_words(data: RunData) -> str:
    """Share of the examples of each task in the whole run, and how often each of its examples is seen."""
    draws = data.order.draws(len(data.tasks))
    tasks = zip(data.tasks, draws, strict=True)
    shares = []
    for task, count in tasks:
        repeats = f"each {count / task.num_examples:.1f} x" if task.num_examples else "streamed"
        shares.append(f"{task.name} {count / sum(draws):.1%} ({repeats})")
    return f"{sum(draws):,} examples: {', '.join(shares)}"

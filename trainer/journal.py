"""The story of a run, for people and for tools: lines on the screen, metrics.jsonl, TensorBoard.

Window numbers (tokens per second, loss per task) are sums over the steps since the
last logged one, divided once; time spent in checkpoints and evaluations is not in them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from trainer.config.plan import Plan
from trainer.console import Screen
from trainer.evaluation.capability_row import MACRO_F1, CapabilityRow
from trainer.evaluation.report import ForgettingReport, drift_of
from trainer.evaluation.report_text import interval, render_markdown, signed
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

    def say(self, line: str) -> None:
        """One line on the screen."""
        self._screen.say(line)

    def compared(self, step: int, moment: str, rows: Sequence[CapabilityRow]) -> None:
        """Main rank: a measurement while training, compared with the base."""
        values = comparison_values(rows)
        if self._metrics is not None:
            self._metrics.write(step, values)
        base = [row for row in rows if row.group == "base"] or rows
        told = ", ".join(
            f"{row.name} {signed(row.difference)} {interval(row)}" for row in base if row.measure != MACRO_F1
        )
        self._screen.say(f"step {step:>6} {moment}: against the base: {told}")

    def reported(self, step: int, report: ForgettingReport) -> None:
        """Main rank: the report of the run."""
        if self._metrics is None:
            return
        stages = report.stages
        values = comparison_values(report.rows)
        if stages is not None:
            measures = {
                "average_accuracy": stages.average_accuracy,
                "backward_transfer": stages.backward_transfer,
                "forward_transfer": stages.forward_transfer,
                "forgetting": stages.forgetting,
            }
            values |= {f"stages/{name}": value for name, value in measures.items() if value is not None}
        self._metrics.write(step, values)
        self._metrics.write_text("report", render_markdown(report))

    def drawn(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Main rank: the figures of the report."""
        for name, figure in figures.items():
            if self._metrics is not None:
                self._metrics.write_figure(f"report/{name}", figure, step)

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


def comparison_values(rows: Sequence[CapabilityRow]) -> dict[str, float]:
    """The numbers of a comparison by the names that they have in metrics.jsonl and TensorBoard."""
    values: dict[str, float] = {}
    for row in rows:
        place = f"{'forgetting' if row.group == 'base' else 'learning'}/{row.name}"
        values |= {
            f"{place}/difference": row.difference,
            f"{place}/interval_low": row.interval_low,
            f"{place}/interval_high": row.interval_high,
        }
        if row.num_lost is not None and row.num_gained is not None:
            values[f"{place}/negative_flip_rate"] = row.num_lost / row.num_examples
            values[f"{place}/positive_flip_rate"] = row.num_gained / row.num_examples
        if row.answer_agreement is not None:
            values[f"{place}/answer_agreement"] = row.answer_agreement
    for drift in drift_of(rows):
        measured = {
            "delta_nll": drift.delta_nll,
            "kl_nats_per_token": drift.kl_nats_per_token,
            "top1_agreement": drift.top1_agreement,
        }
        values |= {f"drift/{drift.group}/{name}": value for name, value in measured.items() if value is not None}
    return values


def _in_words(data: RunData) -> str:
    """Share of the examples of each task in the whole run, and how often each of its examples is seen."""
    draws = data.order.draws(len(data.tasks))
    tasks = zip(data.tasks, draws, strict=True)
    shares = []
    for task, count in tasks:
        repeats = f"each {count / task.num_examples:.1f} x" if task.num_examples else "streamed"
        shares.append(f"{task.name} {count / sum(draws):.1%} ({repeats})")
    return f"{sum(draws):,} examples: {', '.join(shares)}"

"""What the model will really see: `python -m trainer.inspection RUN`, behind `retain data CONFIG`. Trains nothing."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from trainer.config.plan import Plan, read_plan
from trainer.config.run_folder import RunFolder
from trainer.console import Screen
from trainer.data.mixture import Mixture
from trainer.data.tokenize import PromptEncoder, TaskData
from trainer.program import run_program
from trainer.run_data import RunData, read_data

NUM_BARS = 8
WIDEST_BAR = 40
WIDTH = 110


def inspect(run_path: Path, *, num_examples: int) -> str:
    """The page: tasks, the mixture over time, lengths, and examples with their trained tokens marked.

    Raises:
        InputError: the data cannot be trained on; see `read_data`.
    """
    plan = read_plan(RunFolder(run_path).plan)
    said = io.StringIO()
    data = read_data(plan, Screen(said, speaks=True))
    parts = [_tasks(plan, data), _over_time(plan, data.mixture, data.shares), *map(_lengths, data.tasks)]
    parts += [_example(data.measurement.encoder, task, n) for task in data.tasks for n in range(num_examples)]
    notes = [line for line in said.getvalue().splitlines() if not line.startswith("task ")]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _tasks(plan: Plan, data: RunData) -> str:
    """One row a task, and held-out examples beside it."""
    heldout = {
        task.capability: len(chosen.examples)
        for task, chosen in zip(data.measurement.tasks, data.measurement.data, strict=True)
    }
    table = Table(title="Tasks", title_justify="left")
    for title in ("Task", "Examples", "Over-long", "Bad", "Held out", "Tokens", "Mean", "Longest", "Trained tokens"):
        table.add_column(title, justify="left" if title == "Task" else "right")
    for task in data.tasks:
        tokens = task.example_tokens()
        targets = sum(task[index].num_target_tokens or 1 for index in range(len(task)))
        cells = (len(task), task.num_dropped_overlength, task.num_bad, heldout.get(task.name, 0))
        sizes = (int(tokens.sum()), round(float(tokens.mean())), int(tokens.max()), targets)
        table.add_row(task.name, *(f"{cell:,}" for cell in (*cells, *sizes)))
    return _text(table)


def _over_time(plan: Plan, mixture: Mixture, asked: Sequence[float]) -> str:
    """Share asked, and realised after each quarter of the run."""
    names, training = list(plan.config.data.tasks), plan.config.training
    unit = plan.config.data.mixture.unit
    table = Table(title=f"Mixture, shares of {unit}: {len(mixture):,} examples in {training.num_steps:,} steps")
    table.title_justify = "left"
    quarters = [max(1, training.num_steps * part // 4) for part in (1, 2, 3, 4)]
    for title in ("Task", "Asked", *(f"Step {step}" for step in quarters), "Draws", "Each example"):
        table.add_column(title, justify="left" if title == "Task" else "right")
    realised = [mixture.realised(step * training.examples_per_step) for step in quarters]
    for task, name in enumerate(names):
        shares = [f"{asked[task]:.2%}", *(f"{shares[task]:.2%}" for shares in realised)]
        table.add_row(name, *shares, f"{mixture.counts()[task]:,}", f"{mixture.repeats()[task]:.2f} x")
    return _text(table)


def _lengths(task: TaskData) -> str:
    """Histogram of lengths in tokens."""
    tokens = task.example_tokens()
    counts, edges = np.histogram(tokens, bins=min(NUM_BARS, int(tokens.max()) - int(tokens.min()) + 1))
    lines = [f"Lengths of {task.name} in tokens"]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "#" * round(WIDEST_BAR * count / counts.max())
        lines.append(f"  {low:6.0f} to {high:6.0f}  {count:>8,}  {bar}")
    return "\n".join(lines)


def _example(encoder: PromptEncoder, task: TaskData, number: int) -> str:
    """One example as the model sees it; what is trained stands between [[ and ]]."""
    index = number * len(task) // (number + 2)
    example = task[index]
    split = len(example.input_ids) - example.num_target_tokens
    prompt, target = (encoder.tokenizer.decode(part) for part in (example.input_ids[:split], example.input_ids[split:]))
    trained = encoder.labels[example.label] if example.label is not None else target
    return f"Example {index} of {task.name} ({len(example.input_ids)} tokens)\n{prompt}[[{trained}]]"


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the inspection."""
    parser = argparse.ArgumentParser(prog="retain data", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--examples", type=int, default=1)
    options = parser.parse_args(argv)
    return run_program(options.run, "data", lambda: inspect(options.run, num_examples=options.examples))


if __name__ == "__main__":
    sys.exit(main())

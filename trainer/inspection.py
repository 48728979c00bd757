"""What the model will really see: `python -m trainer.inspection RUN`, behind `retain data CONFIG`. Trains nothing.

Shapes: K tasks.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from trainer.config.plan import Plan, read_plan
from trainer.config.run_folder import RunFolder, write_text_atomically
from trainer.console import Screen
from trainer.data.packing import packing_efficiency
from trainer.data.stream import StreamedTask, TrainingTask
from trainer.data.tokenize import PromptEncoder
from trainer.inspection_html import html_page
from trainer.inspection_page import ExamplePart, Histogram, Page, TaskPart, Window
from trainer.inspection_text import text_page
from trainer.prepare import num_processes
from trainer.program import run_program
from trainer.run_data import RunData, read_data

NUM_BARS = 8
NUM_WINDOWS = 60


def inspect(run_path: Path, screen: Screen, *, num_examples: int) -> Page:
    """Everything that the page shows.

    Raises:
        InputError: the data cannot be trained on; see `read_data`.
    """
    plan = read_plan(RunFolder(run_path).plan)
    said = io.StringIO()
    processes = num_processes(plan.config.data)
    data = read_data(plan, Screen(said, speaks=True), processes=processes, tell=screen.say)
    training, section = plan.config.training, plan.config.data
    return Page(
        num_steps=training.num_steps,
        num_draws=data.order.num_examples,
        unit=section.mixture.unit,
        is_steady=data.course.is_steady,
        stage_starts=tuple(data.course.stage_starts),
        tasks=_tasks(data),
        quarters=_windows(data, section.mixture.unit, 4),
        windows=_windows(data, section.mixture.unit, NUM_WINDOWS),
        slots_used=_slots_used(plan, data),
        examples=tuple(
            _example(data.measurement.encoder, task, number)
            for task in data.tasks
            for number in range(min(num_examples, len(_lengths(task))))
        ),
        notes=tuple(line for line in said.getvalue().splitlines() if not line.startswith("task ")),
    )


def _tasks(data: RunData) -> tuple[TaskPart, ...]:
    heldout = {
        task.examples: len(chosen.examples)
        for task, chosen in zip(data.measurement.tasks, data.measurement.data, strict=True)
    }
    draws = data.order.draws(len(data.tasks))
    return tuple(
        TaskPart(
            name=task.name,
            lengths=_histogram(task),  # first: a streamed task is read by it
            summary=replace(task.summary),
            num_measured=heldout.get(task.name, 0),
            num_draws=count,
            is_streamed=isinstance(task, StreamedTask),
        )
        for task, count in zip(data.tasks, draws, strict=True)
    )


def _lengths(task: TrainingTask) -> np.ndarray:
    """Of all examples; of a streamed task those of the first window."""
    return task.first_lengths() if isinstance(task, StreamedTask) else task.lengths


def _histogram(task: TrainingTask) -> Histogram:
    lengths = _lengths(task)
    shortest, longest = int(lengths.min()), int(lengths.max())
    counts, edges = np.histogram(lengths, bins=min(NUM_BARS, longest - shortest + 1))
    return Histogram(tuple(counts.tolist()), tuple(edges.tolist()))


def _windows(data: RunData, unit: str, number: int) -> tuple[Window, ...]:
    """The run cut into `number` parts: what was asked of each, and what the order gives."""
    shares_SK, num_tasks = data.course.shares_SK, len(data.tasks)
    amounts_S = data.order.step_amounts(unit=unit)
    bounds = np.unique(np.rint(np.linspace(0, len(shares_SK), number + 1)).astype(int)).tolist()
    return tuple(
        Window(
            end_step=end,
            asked_K=tuple(np.average(shares_SK[start:end], axis=0, weights=amounts_S[start:end]).tolist()),
            realised_K=tuple(data.order.realised(start, end, num_tasks=num_tasks, unit=unit)),
        )
        for start, end in pairwise(bounds)
    )


def _slots_used(plan: Plan, data: RunData) -> float | None:
    """Share of the slots of packed rows that hold a token."""
    if not plan.config.data.packing:
        return None
    return packing_efficiency(
        data.order.tokens_T, data.order.step_starts_S1, row_tokens=plan.config.data.sequence_length_tokens
    )


def _example(encoder: PromptEncoder, task: TrainingTask, number: int) -> ExamplePart:
    """One example as the model sees it, in pieces that are trained or not."""
    index = number * len(_lengths(task)) // (number + 2)
    example = task[index]
    ids = [int(token) for token in example.input_ids]
    cuts = [0, *(place for span in example.spans for place in span), len(ids)]
    texts = [str(encoder.tokenizer.decode(ids[start:end])) for start, end in pairwise(cuts)]
    pieces = [(text, bool(piece % 2)) for piece, text in enumerate(texts) if text]  # spans are every second piece
    if example.label is not None:
        pieces.append((encoder.labels[example.label], True))
    return ExamplePart(task.name, task.example_id(index), len(ids), tuple(pieces))


def show(run_path: Path, screen: Screen, *, num_examples: int, html: Path | None) -> str:
    """The page as text; and as a file, where one is asked for."""
    page = inspect(run_path, screen, num_examples=num_examples)
    if html is not None:
        write_text_atomically(html, html_page(page))
    return text_page(page) + (f"\n\nwritten: {html}" if html is not None else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the inspection."""
    parser = argparse.ArgumentParser(prog="retain data", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--examples", type=int, default=1)
    parser.add_argument("--html", type=Path)
    options = parser.parse_args(argv)
    return run_program(
        options.run,
        "data",
        lambda screen: show(options.run, screen, num_examples=options.examples, html=options.html),
    )


if __name__ == "__main__":
    sys.exit(main())

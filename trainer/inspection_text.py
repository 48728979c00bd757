"""The page about a run's data as text for a terminal."""

import io
from collections.abc import Callable
from itertools import pairwise

from rich.console import Console
from rich.table import Table

from trainer.inspection_page import ExamplePart, Page, TaskPart

WIDEST_BAR = 40
WIDTH = 120


def text_page(page: Page) -> str:
    """Tasks, the mixture over time, lengths, and examples with their trained parts between [[ and ]]."""
    parts = [_tasks(page), _over_time(page), *map(_lengths, page.tasks), *map(_example, page.examples)]
    if page.slots_used is not None:
        parts.insert(2, f"Packing: {page.slots_used:.1%} of the slots of packed rows hold a token")
    return "\n\n".join([*parts, *(["\n".join(page.notes)] if page.notes else [])])


def _tasks(page: Page) -> str:
    """One row a task."""
    columns: dict[str, Callable[[TaskPart], int]] = {
        "Examples": lambda task: task.summary.num_examples,
        "Over-long": lambda task: task.summary.num_overlength,
        "Cut": lambda task: task.summary.num_truncated,
        "Bad": lambda task: task.summary.num_bad,
        "Measured": lambda task: task.num_measured,
        "Tokens": lambda task: task.summary.num_tokens,
        "Mean": lambda task: round(task.summary.num_tokens / task.summary.num_examples),
        "Longest": lambda task: task.summary.longest,
        "Trained tokens": lambda task: task.summary.num_targets,
    }
    table = Table(title="Tasks", title_justify="left")
    table.add_column("Task")
    for title in columns:
        table.add_column(title, justify="right")
    for task in page.tasks:
        name = f"{task.name} (first)" if task.is_streamed else task.name
        table.add_row(name, *(f"{value(task):,}" for value in columns.values()))
    return _text(table)


def _over_time(page: Page) -> str:
    """Share asked, and realised in each quarter of the run; both for each quarter where the shares change."""
    table = Table(title=f"Mixture, shares of {page.unit}: {page.num_draws:,} examples in {page.num_steps:,} steps")
    table.title_justify = "left"
    table.add_column("Task")
    steps = [0, *(window.end_step for window in page.quarters)]
    spans = [f"{start + 1}-{end}" for start, end in pairwise(steps)]
    asked = ["Asked"] if page.is_steady else []
    for title in (*asked, *spans, "Draws", "Each example"):
        table.add_column(title, justify="right")
    for number, task in enumerate(page.tasks):
        cells = [f"{page.quarters[0].asked_K[number]:.2%}"] if page.is_steady else []
        for window in page.quarters:
            realised, wanted = window.realised_K[number], window.asked_K[number]
            cells.append(f"{realised:.2%}" if page.is_steady else f"{realised:.1%} of {wanted:.1%}")
        table.add_row(
            task.name,
            *cells,
            f"{task.num_draws:,}",
            f"{task.repeats:.2f} x" if task.repeats is not None else "streamed",
        )
    stages = ""
    if len(page.stage_starts) > 1:
        stages = f"\nStages begin at steps {', '.join(str(start + 1) for start in page.stage_starts)}."
    return _text(table) + stages


def _lengths(task: TaskPart) -> str:
    """Histogram of lengths in tokens."""
    counts, edges = task.lengths.counts, task.lengths.edges
    lines = [f"Lengths of {task.name} in tokens"]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "#" * round(WIDEST_BAR * count / max(counts))
        lines.append(f"  {low:6.0f} to {high:6.0f}  {count:>8,}  {bar}")
    return "\n".join(lines)


def _example(example: ExamplePart) -> str:
    """As the model sees it; what is trained stands between [[ and ]]."""
    text = "".join(f"[[{piece}]]" if trained else piece for piece, trained in example.pieces)
    return f"Example {example.example_id} of {example.task} ({example.num_tokens} tokens)\n{text}"


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())

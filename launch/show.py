"""Plans and reports as text for a person."""

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from launch.arms import ARM_COLUMNS, ArmRow, arm_cells
from launch.memory import readable_bytes
from trainer.config.data_schema import DataSection
from trainer.config.plan import MemoryEstimate, Plan
from trainer.evaluation.report import ForgettingReport
from trainer.evaluation.report_text import TABLE_COLUMNS, headline, table_rows

STYLES = {"WORSENED": "red", "REGRESSED": "red", "INCONCLUSIVE": "yellow", "NON-INFERIOR": "green", "improved": "green"}
"""Colours of the verdicts."""


def plan_text(plan: Plan) -> str:
    """What will run, why, how much memory it takes, and the command to paste."""
    config, memory = plan.config, plan.memory
    training = config.training
    base = f"{config.model.quantisation} base, " if config.model.quantisation != "none" else ""
    share = memory.num_trainable_parameters / memory.num_parameters
    lines = [
        f"run folder  {plan.run_folder}",
        f"model       {plan.model_folder}",
        f"            {memory.num_parameters:,} parameters, {memory.num_trainable_parameters:,} trainable "
        f"({share:.2%}), method {config.method}, {base}{training.precision}",
        f"tasks       {_tasks_text(config.data)}",
        f"strategy    {plan.strategy} on {plan.world_size} x {plan.device}",
        f"batch       {_batch_text(plan)}",
        f"steps       {training.num_steps}, warm-up {training.warmup_steps}, peak learning rate "
        f"{training.learning_rate:g}, {training.schedule}",
        "",
        "decisions" if plan.decisions else "decisions   none: everything as asked",
        *(f"  {d.field}: {d.asked} -> {d.used}  ({d.reason})" for d in plan.decisions),
        "",
        f"memory a device, estimated for sequences of {config.data.sequence_length_tokens} tokens, the longest",
        *(f"  {label:<18}{size:>12}" for label, size in memory_rows(memory)),
        "",
        "environment",
        *(f"  {name}={shlex.quote(value)}" for name, value in sorted(plan.environment.items())),
        "",
        "command",
        f"  {shlex.join(plan.argv)}",
    ]
    return "\n".join(lines)


def _tasks_text(data: DataSection) -> str:
    weights = {
        name: f" x{task.weight:g}" if isinstance(task.weight, float | int) else " x a schedule"
        for name, task in data.tasks.items()
    }
    if data.stages:
        return f"{', '.join(data.tasks)}; {len(data.stages)} stages"
    return ", ".join(f"{name}{weight}" for name, weight in weights.items())


def _batch_text(plan: Plan) -> str:
    training, packing = plan.config.training, plan.config.data.packing
    size = (
        f"{training.examples_per_step} examples" if training.examples_per_step else f"{training.tokens_per_step} tokens"
    )
    size += " a step in packed rows" if packing else " a step"
    count = "as many" if plan.microbatches_per_step is None else str(plan.microbatches_per_step)
    needed = " as the step needs" if plan.microbatches_per_step is None else ""
    return f"{size} = {plan.world_size} rank(s) x {count} micro-batches{needed} x {plan.examples_per_microbatch}"


def memory_rows(memory: MemoryEstimate) -> list[tuple[str, str]]:
    """Label and size of each part, and of all parts together."""
    rows = [
        ("weights", memory.weight_bytes),
        ("gradients", memory.gradient_bytes),
        ("optimizer states", memory.optimizer_bytes),
        ("activations", memory.activation_bytes),
        ("logits and loss", memory.logit_bytes),
        ("communication", memory.communication_bytes),
        ("or, evaluating", memory.evaluation_bytes),
        ("together, at most", memory.total_bytes),
        *((("in main memory", memory.offloaded_bytes),) if memory.offloaded_bytes else ()),
    ]
    unknown = f"unknown (model_type {memory.model_type or 'not given'})"
    return [(label, unknown if size is None else readable_bytes(size)) for label, size in rows]


def print_arms(rows: Sequence[ArmRow]) -> None:
    """Two ways to train over several seeds, on the screen."""
    first = rows[0].comparison
    title = f"Gain over the base: A has {first.num_seeds_a} runs, B has {first.num_seeds_b}"
    table = Table(title=title, title_justify="left")
    for column in ARM_COLUMNS:
        table.add_column(column, justify="left" if column in ("Capability", "Measure", "") else "right")
    for row in rows:
        table.add_row(*arm_cells(row))
    Console(width=None if Console().is_terminal else 120).print(table)


def print_report(report: ForgettingReport, *, title: str = "Before and after training") -> None:
    """The before/after table on the screen."""
    table = Table(title=title, title_justify="left")
    for column in TABLE_COLUMNS:
        table.add_column(column, justify="left" if column in ("Capability", "Measure", "Verdict") else "right")
    for row in table_rows(report):
        table.add_row(*row, style=STYLES.get(row[-1]))
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(table)
    console.print(headline(report), markup=False)

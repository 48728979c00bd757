"""Two ways to train, each with several seeds: which one forgets less, beyond the luck of the seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.compare import run_records
from launch.machine import Machine
from trainer.config.errors import InputError
from trainer.config.plan import read_plan
from trainer.config.run_folder import RunFolder
from trainer.evaluation.capability_row import TaskDescription
from trainer.evaluation.join import join
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.report_text import number, signed
from trainer.evaluation.seeds import SeedComparison, compare_over_seeds
from trainer.evaluation.suite import evaluation_tasks

ARM_COLUMNS = ("Capability", "Measure", "n", "Gain of A", "Gain of B", "B - A", "95 % interval", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One measure: gain over the base (above 0 is better) of both arms."""

    description: TaskDescription
    comparison: SeedComparison


def compare_arms(
    arm_a: Sequence[Path], arm_b: Sequence[Path], *, machine: Machine, notify: Callable[[str], None]
) -> list[ArmRow]:
    """Compare the runs of two arms by what each gained or lost against its base.

    Raises:
        InputError: a folder is no measured run, or the runs were not measured on the same examples.
    """
    folders = [[RunFolder(path) for path in arm] for arm in (arm_a, arm_b)]
    for folder in (one for arm in folders for one in arm):
        if not folder.plan.is_file():
            raise InputError(f"{folder.path}: not a run folder (no plan.json in it). Arms are lists of runs: a1,a2,a3.")
    config = read_plan(folders[0][0].plan).config
    tasks = evaluation_tasks(config, variables={"RETAIN_CACHE": str(machine.cache_folder)})
    measured = [[(run_records(folder, step=0), run_records(folder)) for folder in arm] for arm in folders]
    shared = [task for task in tasks if all(task.name in after for arm in measured for _, after in arm)]
    known = {name: None for arm in measured for _, after in arm for name in after}
    alone = [name for name in known if name not in [task.name for task in shared]]
    if alone:
        notify(f"not measured in every run, not compared: {', '.join(alone)}")
    rows = []
    for task in shared:
        description = task.descriptions[0]
        gains = [
            [_gains(description, before[task.name], after[task.name]) for before, after in arm] for arm in measured
        ]
        rows.append(ArmRow(description=description, comparison=compare_over_seeds(*gains)))
    if not rows:
        raise InputError("nothing to compare: no task was measured in every run. Measure all of them with one suite.")
    return rows


def arm_cells(row: ArmRow) -> tuple[str, ...]:
    """One line of the table, for each of ARM_COLUMNS."""
    one, found = row.description, row.comparison
    better = (
        "B is better" if found.interval_low > 0 else "A is better" if found.interval_high < 0 else "no clear winner"
    )
    return (
        one.capability,
        f"{one.measure} ({one.unit})",
        str(found.num_examples),
        signed(found.mean_a),
        signed(found.mean_b),
        signed(found.difference),
        f"[{number(found.interval_low)}, {number(found.interval_high)}]",
        better,
    )


def _gains(
    description: TaskDescription, before: Sequence[ExampleRecord], after: Sequence[ExampleRecord]
) -> dict[str, float]:
    """By example; their mean is the change of the measure (a loss per token: each weighted by its tokens)."""
    pairs = join(description.name, before=before, after=after)
    mean_weight = sum(old.weight for old, _ in pairs) / len(pairs)
    sign = 1 if description.higher_is_better else -1
    return {old.id: sign * (new.value - old.value) / mean_weight for old, new in pairs}

"""Three real tasks in sequence on the demo's model, plain and with replay, several seeds each: what is forgotten.

`python -m benchmarks.continual [--seeds 3] [--folder DIR]`, after `retain demo --prepare-only`. Prints the matrix of
scores and the verdicts of each run, then both arms over all seeds.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trainer.evaluation.report import ForgettingReport, read_report
from trainer.evaluation.report_text import headline, number, signed

ARMS = {"plain": "configs/continual.yaml", "replay": "configs/continual_replay.yaml"}
TIMEOUT_SECONDS = 1800


def retain(*arguments: str) -> None:
    """Run a command of Retain; its lines go to the screen."""
    subprocess.run((sys.executable, "-m", "launch", *arguments), timeout=TIMEOUT_SECONDS, check=True)


def matrix_lines(report: ForgettingReport) -> list[str]:
    """The matrix of a run as a Markdown table, and what is read off it."""
    stages = report.stages
    assert stages is not None
    lines = [f"| after | {' | '.join(stages.tasks)} |", f"| --- |{' --- |' * len(stages.tasks)}"]
    for name, row in zip(stages.stages, stages.scores_RT, strict=True):
        lines.append(f"| {name} | {' | '.join(map(number, row))} |")
    measures = {
        "ACC": stages.average_accuracy,
        "BWT": stages.backward_transfer,
        "FWT": stages.forward_transfer,
        "forgetting": stages.forgetting,
        "worst base ability": stages.worst_ability_delta,
    }
    told = ", ".join(f"{name} {signed(value)}" for name, value in measures.items() if value is not None)
    return [*lines, "", told]


def main(argv: Sequence[str] | None = None) -> None:
    """Train every run, then compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(argv)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="retain-continual-"))
    runs: dict[str, list[str]] = {arm: [] for arm in ARMS}
    for seed in range(1, options.seeds + 1):
        for arm, config in ARMS.items():
            run = folder / f"{arm}{seed}"
            runs[arm].append(str(run))
            if not (run / "report.json").exists():
                retain("train", config, f"run.folder={run}", f"run.seed={seed}")
    for arm, folders in runs.items():
        for run_folder in folders:
            report = read_report(Path(run_folder))
            print(f"\n{arm}, {Path(run_folder).name}: {headline(report)}\n", *matrix_lines(report), sep="\n")
    print(flush=True)
    retain("compare", ",".join(runs["plain"]), ",".join(runs["replay"]))


if __name__ == "__main__":
    main()

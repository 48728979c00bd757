"""Make the data of a run before its ranks start: `python -m trainer.prepare RUN`, which `retain train` calls.

Only what is not in the cache yet is made. Ranks that are started without it make it themselves, on one process.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.config.data_schema import DataSection
from trainer.config.plan import read_plan
from trainer.config.run_folder import RunFolder
from trainer.console import Screen
from trainer.data.fingerprint import Fingerprints
from trainer.program import run_program
from trainer.run_data import read_data

PARENT_SECONDS = 1.0


def num_processes(data: DataSection) -> int:
    """Processes that may prepare data on this machine."""
    asked = data.preparation_processes
    return len(os.sched_getaffinity(0)) if asked == "auto" else asked


def prepare(run_path: Path, screen: Screen) -> str:
    """Make everything that the ranks will open.

    Raises:
        InputError: the data cannot be trained on; see `read_data`.
    """
    plan = read_plan(RunFolder(run_path).plan)
    read_data(plan, Screen(sys.stdout, speaks=False), processes=num_processes(plan.config.data), tell=screen.say)
    Fingerprints(Path(plan.cache_folder) / "data" / "files").model(Path(plan.model_folder))  # ranks would wait for it
    return ""


def _end_with_parent(parent: int) -> None:
    """Whoever asked for the data is gone: a scheduler that ended it does not wait for us."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the preparation."""
    parser = argparse.ArgumentParser(prog="trainer.prepare", description=__doc__)
    parser.add_argument("run", type=Path)
    options = parser.parse_args(argv)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    return run_program(options.run, "prepare", lambda screen: prepare(options.run, screen))


if __name__ == "__main__":
    sys.exit(main())

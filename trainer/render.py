"""report.md and report.html of a folder that holds a report.json: `python -m trainer.render FOLDER`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.evaluation.report import read_report
from trainer.program import run_program
from trainer.run_report import write_files


def render(folder: Path) -> str:
    """Write both pages.

    Raises:
        DataError: report.json is missing or damaged.
    """
    write_files(folder, read_report(folder))
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the rendering."""
    parser = argparse.ArgumentParser(prog="trainer.render", description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    return run_program(options.folder, "render", lambda _: render(options.folder), needs_plan=False)


if __name__ == "__main__":
    sys.exit(main())

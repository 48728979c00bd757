"""What a person sees: one rank speaks; libraries write to a log file instead of the screen.

A progress bar with ETA on a terminal, plain lines elsewhere.
"""

import os
import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def divert_library_output(log_path: Path) -> tuple[TextIO, TextIO]:
    """Point this process's stdout and stderr at a log file, native libraries included.

    Returns:
        stdout and stderr as they were before.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    stdout, stderr = (os.fdopen(os.dup(number), "w", encoding="utf-8", errors="replace") for number in (1, 2))
    with log_path.open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    return stdout, stderr


class Screen:
    """Speaks on the main rank, is silent on the others."""

    def __init__(self, stream: TextIO, *, speaks: bool) -> None:
        self._speaks = speaks
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._bar: TaskID | None = None

    def say(self, line: str) -> None:
        """One plain line, above the progress bar where there is one."""
        if self._speaks:
            self._console.print(line, markup=False)

    def start_progress(self, title: str, *, total: int, completed: int = 0) -> None:
        """Begin a bar; nothing where the screen is not a terminal."""
        if not (self._speaks and self._console.is_terminal):
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            redirect_stdout=False,  # they point at the log and stay there
            redirect_stderr=False,
        )
        self._bar = self._progress.add_task(title, total=total, completed=completed, note="")
        self._progress.start()

    def advance(self, completed: int, *, note: str = "") -> None:
        """Move the bar."""
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=completed, note=note)

    def end_progress(self) -> None:
        """Remove the bar's liveness; its last state stays on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

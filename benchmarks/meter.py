"""Time and memory of one process, for the benchmarks."""

import threading
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import psutil

WATCH_SECONDS = 0.02


class Meter:
    """Seconds, processor seconds and memory of this process and of its children that have ended."""

    def __init__(self) -> None:
        """Start the clock: imports are done."""
        self._begun, self._cpu, self._imported = time.perf_counter(), _cpu_seconds(), _peak_mib()
        self._own = _own_mib()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._own = max(self._own, _own_mib())
            time.sleep(WATCH_SECONDS)

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._begun

    def result(self) -> dict[str, float]:
        """All of it, now. The peak is that of the largest process; `own_mib` is of this one, without mapped files."""
        seconds, cpu = self.seconds(), _cpu_seconds() - self._cpu
        memory = {"imported_mib": self._imported, "peak_mib": _peak_mib(), "own_mib": self._own}
        return {"seconds": seconds, "cpu": cpu, **memory}


def _cpu_seconds() -> float:
    """Of this process and of all below it, also of those that still wait to be of use."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in family)  # user, system, and both of children that ended


def _own_mib() -> float:
    """Memory that this process holds now, without the pages of files that the system takes back when it likes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def _peak_mib() -> float:
    return max(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)) / 1024

"""DeepSpeed's compiled operators: built once, ahead of training, and never waited for in silence.

torch builds an operator under a file named `lock`. A process killed meanwhile leaves
that file behind, and every later process waits for it for ever without a word
(torch.utils.file_baton). So before a launch: lock files that no process holds are
removed and told, and what is missing is built here, with a time-out.
"""

import fcntl
import importlib.metadata
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from launch.commands import module_argv

BUILD_TIMEOUT_SECONDS = 600
WAIT_TIMEOUT_SECONDS = 600


class OperatorError(RuntimeError):
    """Operators could not be built, or another process has been building them for too long."""


def prepare_operators(environment: Mapping[str, str], *, notify: Callable[[str], None]) -> None:
    """Make sure that no training process has to compile, or to wait for a lock that nobody holds.

    Args:
        environment: complete environment of the ranks, TORCH_EXTENSIONS_DIR included.

    Raises:
        OperatorError: with the cause and what to do.
    """
    folder = Path(environment["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one_builder(folder, notify=notify):
        for lock in stale_locks(folder):
            lock.unlink(missing_ok=True)
            notify(f"removed a stale build lock that would have hung every start: {lock}")
        marker = folder / f"built-{_versions()}"
        if marker.exists():
            return
        notify("compiling DeepSpeed's operators for this machine (once, about a minute)")
        _build(environment, log=folder / "build.log")
        marker.touch()


def stale_locks(folder: Path) -> list[Path]:
    """Lock files under `folder` that no process of this host holds open."""
    locks = [path for path in folder.glob("**/lock") if path.is_file()]
    held = _open_files() if locks else set()
    return [path for path in locks if str(path.resolve()) not in held]


def _open_files() -> set[str]:
    held: set[str] = set()
    for process in psutil.process_iter():
        try:
            held |= {os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
        except OSError:
            continue
    return held


def _versions() -> str:
    names = ("torch", "deepspeed")
    return "-".join(f"{name}{importlib.metadata.version(name)}" for name in names)


def _build(environment: Mapping[str, str], *, log: Path) -> None:
    with log.open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                module_argv("trainer.engine.zero"),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=BUILD_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise OperatorError(
                f"compiling DeepSpeed's operators took longer than {BUILD_TIMEOUT_SECONDS} s; see {log}. "
                f"Remove {log.parent} and try again."
            ) from None
    if done.returncode:
        raise OperatorError(
            f"compiling DeepSpeed's operators failed (exit {done.returncode}); see {log}. It needs g++."
        )


@contextmanager
def _only_one_builder(folder: Path, *, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that the kernel releases when its holder dies."""
    with (folder / ".building").open("w") as file:
        deadline, told = time.monotonic() + WAIT_TIMEOUT_SECONDS, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    notify("another process is compiling DeepSpeed's operators: waiting for it")
                    told = True
                if time.monotonic() > deadline:
                    raise OperatorError(
                        f"another process has held {file.name} for {WAIT_TIMEOUT_SECONDS} s. Find it with: "
                        f"fuser -v {file.name}"
                    ) from None
                time.sleep(0.5)
        yield

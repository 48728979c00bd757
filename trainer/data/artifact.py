"""Folders of prepared data that one process makes and many use, on one machine or on several with a common disk.

Whoever comes first makes a folder; the others wait, look at its progress, and go on when it is complete. They wait
outside of any collective, so that no time-out of one can end a run whose data is still being made.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trainer.config.errors import DataError
from trainer.config.run_folder import read_json_object, write_json

POLL_SECONDS = 0.2
WRITE_SECONDS = 1.0
"""Between two signs of life."""

TELL_SECONDS = 10.0
"""Between two lines about progress."""

Say = Callable[[str], None]


class Builder:
    """Makes one folder."""

    def __init__(self, folder: Path, progress_path: Path, *, what: str, say: Say) -> None:
        self.folder = folder
        """Where the files go; complete only when the `with` block ends without an error."""

        self._progress_path, self._what, self._say = progress_path, what, say
        self._written, self._told = 0.0, time.monotonic()

    def progress(self, words: str) -> None:
        """Tell the screen, and those who wait, how far this is; also the sign of life that they want."""
        now = time.monotonic()
        if now - self._written >= WRITE_SECONDS:
            self._written = now
            write_json(self._progress_path, _sign_of_life(words))
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self._say(f"preparing {self._what}: {words}")


@contextmanager
def made_once(target: Path, *, what: str, say: Say, timeout_seconds: float) -> Iterator[Builder | None]:
    """A builder where `target` is to be made by this process; None where it is complete.

    Args:
        what: the thing in words, for messages.
        say: told about progress, here or in another process.
        timeout_seconds: without a sign of life from that process.

    Raises:
        DataError: another process could not make it, for the same reason; or gave no sign of life.
    """
    if target.is_dir():
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not a dot in front of the name: a suffix keeps the lock beside what it guards in a listing.
    lock, progress, failure = (target.with_name(f"{target.name}.{end}") for end in ("lock", "progress", "failed"))
    failed_before = read_json_object(failure)
    with _held(FileLock(lock), progress, what=what, say=say, timeout_seconds=timeout_seconds):
        if target.is_dir():
            yield None
            return
        failed_now = read_json_object(failure)
        if failed_now is not None and failed_now != failed_before:
            raise DataError(str(failed_now["words"]))
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        builder = Builder(part, progress, what=what, say=say)
        builder.progress("begun")
        try:
            yield builder
        except DataError as error:
            write_json(failure, _sign_of_life(str(error)))
            shutil.rmtree(part, ignore_errors=True)
            raise
        part.rename(target)
        progress.unlink(missing_ok=True)
        failure.unlink(missing_ok=True)


@contextmanager
def _held(lock: FileLock, progress: Path, *, what: str, say: Say, timeout_seconds: float) -> Iterator[None]:
    """Take the lock, however long it takes as long as its holder shows signs of life."""
    seen, since, told = None, time.monotonic(), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=POLL_SECONDS)
            break
        except Timeout:
            pass
        now, sign = time.monotonic(), read_json_object(progress)
        if sign != seen:
            seen, since = sign, now
        if now - since > timeout_seconds:
            holder = f"process {seen['process']} on {seen['host']}" if seen else "the process that holds it"
            raise DataError(
                f"{lock.lock_file}: {what} is being prepared, but {holder} gave no sign of life for "
                f"{timeout_seconds:.0f} s. End it, then run again; or raise data.preparation_timeout_seconds."
            )
        if seen is not None and now - told > TELL_SECONDS:
            told = now
            say(f"waiting for {what}: {seen['words']} (process {seen['process']} on {seen['host']})")
    try:
        yield
    finally:
        lock.release()


def _sign_of_life(words: str) -> dict[str, Any]:
    return {"words": words, "process": os.getpid(), "host": socket.gethostname(), "time": time.time()}

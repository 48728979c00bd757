"""Operators are built once, by one process, and no lock that nobody holds can hang a start."""

import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import operators
from launch.operators import OperatorError, prepare_operators, stale_locks

HOLD_OPEN = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


class Builds:
    """Stands for the compiler: counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, environment: Mapping[str, str], *, log: Path) -> None:
        self.count += 1


class Clock:
    """Time that passes only in `sleep`, with something to do at each of them."""

    def __init__(self, at_sleep: Callable[[], None] = lambda: None) -> None:
        self.now, self._at_sleep = 0.0, at_sleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._at_sleep()


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(operators, "_build", builds)
    return builds


def prepare(folder: Path) -> list[str]:
    """Prepare operators in `folder`; what was said meanwhile."""
    said: list[str] = []
    prepare_operators({"TORCH_EXTENSIONS_DIR": str(folder)}, notify=said.append)
    return said


def leave_lock(folder: Path) -> Path:
    lock = folder / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return lock


@contextmanager
def another_builder(folder: Path) -> Iterator[Any]:
    """Holds the lock of the builders through a file of its own, as another process would."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".building").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def test_a_lock_that_nobody_holds_is_removed_and_told(tmp_path: Path, builds: Builds) -> None:
    lock = leave_lock(tmp_path)
    assert stale_locks(tmp_path) == [lock]
    said = prepare(tmp_path)
    assert not lock.exists()
    assert f"removed a stale build lock that would have hung every start: {lock}" in said


def test_a_lock_that_a_live_process_holds_open_is_left_alone(tmp_path: Path, builds: Builds) -> None:
    lock = leave_lock(tmp_path)
    command = [sys.executable, "-S", "-c", HOLD_OPEN, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert stale_locks(tmp_path) == []
        prepare(tmp_path)
        assert lock.exists()
        holder.communicate()  # its input ends, and with it the process
    assert stale_locks(tmp_path) == [lock]


def test_a_folder_named_lock_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    assert stale_locks(tmp_path) == []


def test_operators_are_built_once(tmp_path: Path, builds: Builds) -> None:
    assert len(prepare(tmp_path / "new")) == 1
    assert prepare(tmp_path / "new") == []
    assert builds.count == 1


def test_other_versions_of_the_libraries_are_built_again(
    tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    monkeypatch.setattr(operators, "_versions", lambda: "torch99-deepspeed99")
    prepare(tmp_path)
    assert builds.count == 2


def test_a_second_builder_gives_up_after_a_while_and_says_why(
    tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "time", Clock())
    monkeypatch.setattr(operators, "WAIT_TIMEOUT_SECONDS", 3)
    said: list[str] = []
    held = f"another process has held {tmp_path}/.building for 3 s. Find it with: fuser -v {tmp_path}/.building"
    with another_builder(tmp_path), pytest.raises(OperatorError, match=held):
        prepare_operators({"TORCH_EXTENSIONS_DIR": str(tmp_path)}, notify=said.append)
    assert said == ["another process is compiling DeepSpeed's operators: waiting for it"]
    assert builds.count == 0


def test_a_second_builder_goes_on_when_the_first_is_done(
    tmp_path: Path, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_builder(tmp_path) as first:
        marker = tmp_path / f"built-{operators._versions()}"

        def first_finishes() -> None:
            marker.touch()
            fcntl.flock(first, fcntl.LOCK_UN)

        monkeypatch.setattr(operators, "time", Clock(first_finishes))
        assert prepare(tmp_path) == ["another process is compiling DeepSpeed's operators: waiting for it"]
    assert builds.count == 0


def test_a_build_that_fails_says_where_its_log_is_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators.subprocess, "run", lambda *args, **options: SimpleNamespace(returncode=1))
    for _ in range(2):
        with pytest.raises(OperatorError, match=rf"failed \(exit 1\); see {tmp_path}/build\.log\. It needs g\+\+\."):
            prepare(tmp_path)


def test_a_build_that_takes_too_long_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never_ends(argv: tuple[str, ...], *, timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr(operators.subprocess, "run", never_ends)
    monkeypatch.setattr(operators, "BUILD_TIMEOUT_SECONDS", 7)
    with pytest.raises(OperatorError, match=rf"took longer than 7 s; see {tmp_path}/build\.log\."):
        prepare(tmp_path)

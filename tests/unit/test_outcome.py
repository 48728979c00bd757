"""How a rank ended: the exit code by the kind of error, and a file that says why."""

import itertools
import json
from pathlib import Path

import pytest

from trainer.config.errors import ConfigError, DataError, InputError, NonFiniteError
from trainer.config.run_folder import RunFolder
from trainer.evaluation.join import JoinError
from trainer.outcome import write_outcome

ENDS = [
    (None, False, "done", 0),
    (None, True, "stopped", 75),
    (ConfigError("x"), False, "input", 2),
    (DataError("x"), False, "input", 2),
    (JoinError("x"), False, "input", 2),
    (InputError("x"), False, "input", 2),
    (NonFiniteError("x"), False, "non-finite", 1),
    (RuntimeError("x"), False, "crash", 1),
    (ValueError("x"), False, "crash", 1),
    (ZeroDivisionError("x"), False, "crash", 1),
    (MemoryError("x"), False, "crash", 1),
    (KeyboardInterrupt("x"), False, "crash", 1),
]


def names(ends: list[tuple[BaseException | None, bool, str, int]]) -> list[str]:
    return [type(error).__name__ if error else kind for error, _, kind, _ in ends]


def outcome_of(folder: Path, error: BaseException | None, *, rank: int = 3, stopped: bool = False) -> dict[str, object]:
    run = RunFolder(folder)
    code = write_outcome(run, rank=rank, host="node7", error=error, stopped=stopped)
    written: dict[str, object] = json.loads(run.outcome(rank).read_text(encoding="utf-8"))
    assert written["exit_code"] == code
    return written


@pytest.mark.parametrize(("error", "stopped", "kind", "code"), ENDS, ids=names(ENDS))
def test_the_kind_of_the_end_decides_the_exit_code(
    tmp_path: Path, error: BaseException | None, stopped: bool, kind: str, code: int
) -> None:
    written = outcome_of(tmp_path, error, stopped=stopped)
    assert (written["kind"], written["exit_code"]) == (kind, code)
    assert written["message"] == ("x" if error else "")


@pytest.mark.parametrize("error", [ConfigError("x"), RuntimeError("x")])
def test_an_error_is_told_even_if_a_stop_was_asked_for(tmp_path: Path, error: Exception) -> None:
    assert outcome_of(tmp_path, error, stopped=True)["kind"] in ("input", "crash")


def test_only_a_crash_has_a_traceback(tmp_path: Path) -> None:
    try:
        raise RuntimeError("out of luck")
    except RuntimeError as error:
        crash = str(outcome_of(tmp_path, error)["traceback"])
    assert crash.startswith("Traceback (most recent call last):\n")
    assert "test_outcome.py" in crash
    assert crash.endswith("RuntimeError: out of luck\n")
    for other in (None, DataError("x"), NonFiniteError("x")):
        assert outcome_of(tmp_path, other)["traceback"] == ""


def test_the_cause_of_a_crash_is_in_its_traceback(tmp_path: Path) -> None:
    try:
        try:
            raise OSError("disk is full")
        except OSError as error:
            raise RuntimeError("cannot save") from error
    except RuntimeError as error:
        crash = str(outcome_of(tmp_path, error)["traceback"])
    assert "OSError: disk is full" in crash


def test_a_message_of_several_lines_and_any_script_is_kept(tmp_path: Path) -> None:
    message = "a.jsonl:1: malformed\na.jsonl:2: \u00e9\u4e2d"
    assert outcome_of(tmp_path, DataError(message))["message"] == message


def test_each_rank_has_a_file_of_its_own_with_its_name_and_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1000)
    monkeypatch.setattr("trainer.outcome.time.time", lambda: float(next(clock)))
    first, second = outcome_of(tmp_path, None, rank=0), outcome_of(tmp_path, RuntimeError("x"), rank=12)
    assert (first["rank"], first["host"], first["time_seconds"]) == (0, "node7", 1000.0)
    assert (second["rank"], second["host"], second["time_seconds"]) == (12, "node7", 1001.0)
    assert sorted(path.name for path in RunFolder(tmp_path).logs.iterdir()) == [
        "outcome_rank_00000.json",
        "outcome_rank_00012.json",
    ]


def test_a_second_attempt_replaces_the_outcome_of_the_first(tmp_path: Path) -> None:
    outcome_of(tmp_path, RuntimeError("x"))
    assert outcome_of(tmp_path, None)["kind"] == "done"

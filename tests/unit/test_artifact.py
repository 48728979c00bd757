"""Whoever comes first prepares, the others wait: through success, failure, death and silence of the first."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from trainer.config.errors import DataError
from trainer.data import artifact
from trainer.data.artifact import made_once

SPAWN = multiprocessing.get_context("spawn")
PATIENCE_SECONDS = 30.0
SHORT_SECONDS = 1.0


def make(target: Path, *, content: str | None = "made", timeout_seconds: float = PATIENCE_SECONDS) -> bool:
    """Make the target unless it is there; whether it was made here. Without content it cannot be made."""
    with made_once(target, what="a thing", say=print, timeout_seconds=timeout_seconds) as builder:
        if content is None:
            raise DataError("malformed")
        if builder is not None:
            (builder.folder / "file").write_text(content, encoding="utf-8")
        return builder is not None


def first(target: Path, begun: Any, deed: str) -> None:
    """In another process: begin to make the target, then do what the test wants."""
    artifact.WRITE_SECONDS = 0.0
    with made_once(target, what="a thing", say=print, timeout_seconds=PATIENCE_SECONDS) as builder:
        assert builder is not None
        (builder.folder / "file").write_text("by the first", encoding="utf-8")
        builder.progress("half done")
        begun.set()
        time.sleep(1.5)
        if deed == "fail":
            raise DataError("x.jsonl:3: malformed")
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "hang":
            time.sleep(60)


def other_process(target: Path, deed: str) -> Any:
    begun = SPAWN.Event()
    process = SPAWN.Process(target=first, args=(target, begun, deed))
    process.start()
    assert begun.wait(PATIENCE_SECONDS)
    return process


def ended(process: Any) -> None:
    process.kill()
    process.join(PATIENCE_SECONDS)


def test_a_thing_is_made_once(tmp_path: Path) -> None:
    assert make(tmp_path / "thing")
    assert not make(tmp_path / "thing", content="again")
    assert (tmp_path / "thing/file").read_text(encoding="utf-8") == "made"
    assert {path.name for path in tmp_path.iterdir()} <= {"thing", "thing.lock"}


def test_a_thing_that_could_not_be_made_is_not_there_and_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="malformed"):
        make(tmp_path / "thing", content=None)
    assert not (tmp_path / "thing").exists()
    assert make(tmp_path / "thing")  # the failure was seen before: the input may be right now
    assert not (tmp_path / "thing.failed").exists()


def test_who_comes_second_waits_for_the_first_and_tells_its_progress(tmp_path: Path) -> None:
    process, said = other_process(tmp_path / "thing", "finish"), []
    with (
        patch.object(artifact, "TELL_SECONDS", 0.5),
        made_once(tmp_path / "thing", what="a thing", say=said.append, timeout_seconds=PATIENCE_SECONDS) as builder,
    ):
        assert builder is None
    ended(process)
    assert (tmp_path / "thing/file").read_text(encoding="utf-8") == "by the first"
    assert said
    assert said[0].startswith(f"waiting for a thing: half done (process {process.pid} on ")


def test_a_failure_of_the_first_is_the_failure_of_who_waits(tmp_path: Path) -> None:
    process = other_process(tmp_path / "thing", "fail")
    with pytest.raises(DataError, match=r"^x\.jsonl:3: malformed$"):
        make(tmp_path / "thing")
    ended(process)
    assert not (tmp_path / "thing").exists()


def test_who_waits_takes_over_when_the_first_dies(tmp_path: Path) -> None:
    process = other_process(tmp_path / "thing", "die")
    assert make(tmp_path / "thing", content="by the second")
    ended(process)
    assert (tmp_path / "thing/file").read_text(encoding="utf-8") == "by the second"


def test_silence_ends_the_wait_with_the_name_of_the_cause(tmp_path: Path) -> None:
    process = other_process(tmp_path / "thing", "hang")
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        make(tmp_path / "thing", timeout_seconds=SHORT_SECONDS)
    ended(process)
    assert time.monotonic() - started < PATIENCE_SECONDS
    assert f"process {process.pid} on " in str(caught.value)
    assert "gave no sign of life for 1 s" in str(caught.value)
    assert "data.preparation_timeout_seconds" in str(caught.value)


def test_progress_is_told_here_and_written_for_others(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        patch.object(artifact, "TELL_SECONDS", 0.0),
        patch.object(artifact, "WRITE_SECONDS", 0.0),
        made_once(tmp_path / "thing", what="a thing", say=said.append, timeout_seconds=PATIENCE_SECONDS) as builder,
    ):
        assert builder is not None
        builder.progress("17 examples read")
        sign = json.loads((tmp_path / "thing.progress").read_text(encoding="utf-8"))
        assert (sign["words"], sign["process"]) == ("17 examples read", os.getpid())
    assert said[-1] == "preparing a thing: 17 examples read"

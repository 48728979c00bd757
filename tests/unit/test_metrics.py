"""Numbers of a run: appended, readable in both places, and cut back to the checkpoint when a run goes on."""

import itertools
import json
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.config.run_folder import RunFolder
from trainer.metrics import Metrics

# TensorBoard stores scalars in fp32.
FP32 = 1e-6
START_SECONDS = 1_700_000_000


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second later: event files are ordered by the second they were opened in."""
    seconds = itertools.count(START_SECONDS)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))


def logged(folder: RunFolder, steps: range, *, first_step: int, scale: float = 1.0) -> None:
    metrics = Metrics(folder, first_step=first_step)
    for step in steps:
        metrics.write(step, {"train/loss": scale * step, "train/gradient_norm": 0.5})
    metrics.close()


def lines(folder: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]


def board(folder: RunFolder) -> EventAccumulator:
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    return events


def scalars(folder: RunFolder, name: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value, rel=FP32)) for event in board(folder).Scalars(name)]


def test_each_step_is_one_line_of_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    logged(folder, range(1, 4), first_step=0)
    assert lines(folder) == [
        {"step": step, "train/loss": float(step), "train/gradient_norm": 0.5} for step in (1, 2, 3)
    ]


def test_a_line_can_be_read_as_soon_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    metrics = Metrics(folder, first_step=0)
    metrics.write(1, {"train/loss": 2.5})
    assert lines(folder) == [{"step": 1, "train/loss": 2.5}]
    metrics.close()


def test_numbers_are_written_without_rounding(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    metrics = Metrics(folder, first_step=0)
    metrics.write(1, {"train/loss": 0.1 + 0.2, "train/learning_rate": 1e-300})
    metrics.close()
    assert lines(folder) == [{"step": 1, "train/loss": 0.1 + 0.2, "train/learning_rate": 1e-300}]


def test_a_run_that_goes_on_appends_after_its_checkpoint(tmp_path: Path) -> None:
    # Steps 1 to 5 were logged, the checkpoint is of step 3: 4 and 5 are taken again, with other numbers.
    folder = RunFolder(tmp_path)
    logged(folder, range(1, 6), first_step=0)
    logged(folder, range(4, 7), first_step=3, scale=10.0)
    assert [(line["step"], line["train/loss"]) for line in lines(folder)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
        (5, 50.0),
        (6, 60.0),
    ]


def test_the_lines_up_to_the_checkpoint_keep_their_bytes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logged(folder, range(1, 6), first_step=0)
    before = folder.metrics.read_bytes()
    logged(folder, range(0), first_step=5)
    assert folder.metrics.read_bytes() == before
    logged(folder, range(0), first_step=2)
    assert folder.metrics.read_bytes() == b"".join(before.splitlines(keepends=True)[:2])


def test_a_run_that_starts_over_drops_every_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logged(folder, range(1, 6), first_step=0)
    logged(folder, range(1, 2), first_step=0, scale=10.0)
    assert [line["train/loss"] for line in lines(folder)] == [10.0]


def test_a_last_line_that_was_cut_off_does_not_stop_a_run_from_going_on(tmp_path: Path) -> None:
    # A full disk or a lost machine: the line belongs to a step beyond the checkpoint in any case.
    folder = RunFolder(tmp_path)
    logged(folder, range(1, 4), first_step=0)
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "train/lo')
    logged(folder, range(4, 5), first_step=3)
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4]


def test_tensorboard_holds_each_value_under_its_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logged(folder, range(1, 4), first_step=0, scale=0.1)
    assert sorted(board(folder).Tags()["scalars"]) == ["train/gradient_norm", "train/loss"]
    assert scalars(folder, "train/loss") == [(1, 0.1), (2, 0.2), (3, pytest.approx(0.3))]
    assert scalars(folder, "train/gradient_norm") == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_tensorboard_forgets_what_was_logged_beyond_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logged(folder, range(1, 6), first_step=0)
    logged(folder, range(4, 6), first_step=3, scale=10.0)
    assert scalars(folder, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0)]


def test_tensorboard_forgets_a_run_that_starts_over(tmp_path: Path) -> None:
    # Killed before its first checkpoint, a run is resumed from step 0.
    folder = RunFolder(tmp_path)
    logged(folder, range(1, 6), first_step=0)
    logged(folder, range(1, 3), first_step=0, scale=10.0)
    assert scalars(folder, "train/loss") == [(1, 10.0), (2, 20.0)]


def test_a_text_is_a_panel_in_tensorboard_and_no_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    metrics = Metrics(folder, first_step=0)
    metrics.write_text("plan", "**single**, 1 rank")
    metrics.close()
    events = board(folder)
    (event,) = events.Tensors("plan/text_summary")
    assert event.tensor_proto.string_val == [b"**single**, 1 rank"]
    assert lines(folder) == []

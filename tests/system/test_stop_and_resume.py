"""Stopped and resumed equals never stopped, bit for bit; and a stop leaves no process behind."""

import hashlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.demo_assets import needs_demo_packages
from tests.harness import LAUNCH_TIMEOUT_SECONDS, REPOSITORY, SHORT_RUN, command, retain, trajectory

pytestmark = needs_demo_packages


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoints/step_000012/weights/model.safetensors").read_bytes()).hexdigest()


def workers_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder / "plan.json") in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def start_and_interrupt(
    folder: Path,
    *overrides: str,
    after_line: str,
    number: signal.Signals = signal.SIGINT,
    times: int = 1,
    act: Callable[[], None] | None = None,
) -> tuple[int, str]:
    """Start a run, signal the launcher (or `act`) once a line of its output begins so, and wait for its end."""
    process = subprocess.Popen(
        command("train", "configs/demo.yaml", *SHORT_RUN, f"run.folder={folder}", "run.record_order=true", *overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    guard = threading.Timer(LAUNCH_TIMEOUT_SECONDS, process.kill)
    guard.start()
    output = []
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line)
        if line.startswith(after_line) and times:
            act() if act else process.send_signal(number)
            times -= 1
            after_line = "stopping" if times else after_line
    guard.cancel()
    return process.wait(timeout=30), "".join(output)


@pytest.mark.parametrize("layout", ["zero2", "single"])
def test_a_run_resumed_from_a_checkpoint_equals_the_undisturbed_one(
    run: Callable[[str], Path], tmp_path: Path, layout: str
) -> None:
    folder = run(layout)
    undisturbed, weights = trajectory(folder), weights_hash(folder)
    report = (folder / "report.json").read_bytes()
    shutil.rmtree(folder / "checkpoints/step_000012")  # as if killed between step 6 and the end
    shutil.rmtree(folder / "evaluation/step_000012")
    (folder / "report.json").unlink()
    done = retain("train", "--resume", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from step_000006" in done.stdout
    assert trajectory(folder) == undisturbed
    assert weights_hash(folder) == weights
    assert (folder / "report.json").read_bytes() == report


def test_ctrl_c_writes_a_checkpoint_says_how_to_go_on_and_leaves_no_process(
    run: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    code, output = start_and_interrupt(folder, after_line="step      2", number=signal.SIGINT)
    assert code == 75, output
    assert f"retain train --resume {folder}" in output
    assert "Traceback" not in output
    assert workers_of(folder) == []
    assert len(trajectory(folder)) < 12
    done = retain("train", "--resume", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert trajectory(folder) == trajectory(run("zero2"))
    assert weights_hash(folder) == weights_hash(run("zero2"))
    steps = [line.split(",")[0] for line in (folder / "order.csv").read_text(encoding="utf-8").splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 13) for _ in range(64)]


def test_a_stop_during_the_first_measurement_can_be_resumed(tmp_path: Path) -> None:
    # With adapters: they are switched off at that moment, and must be in the checkpoint all the same.
    folder = tmp_path / "run"
    code, output = start_and_interrupt(
        folder, "method=lora", "evaluation.baseline=measure", after_line="measuring before", number=signal.SIGTERM
    )
    assert code == 75, output
    assert f"Go on from step 0 with: retain train --resume {folder}" in output
    assert workers_of(folder) == []
    # 4 layers of 7 adapted matrices, a pair of factors each.
    assert len(load_file(folder / "checkpoints/step_000000/weights/adapter_model.safetensors")) == 4 * 7 * 2
    done = retain("train", "--resume", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from step_000000" in done.stdout
    assert len(trajectory(folder)) == 12


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = start_and_interrupt(folder, after_line="task sentiment", number=signal.SIGINT, times=2)
    assert code in (75, 130), output
    assert "Traceback" not in output
    assert workers_of(folder) == []


def test_a_finished_run_is_not_trained_again(run: Callable[[str], Path]) -> None:
    done = retain("train", "--resume", str(run("ddp")))
    assert done.returncode == 2
    assert "this run is finished (step 12)" in done.stderr


def test_a_rank_that_is_killed_is_named_and_the_run_can_go_on(run: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def kill_rank_1() -> None:
        (victim,) = [p for p in workers_of(folder) if p.environ().get("RANK") == "1"]
        victim.kill()

    code, output = start_and_interrupt(folder, after_line="step      7", act=kill_rank_1)
    assert code == 1, output
    assert "rank(s) 1 ended without a word" in output
    assert f"Go on from step 6 with: retain train --resume {folder}" in output
    assert "Traceback (most recent call last)" not in output.split("Last lines of")[0]
    assert workers_of(folder) == []
    done = retain("train", "--resume", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert trajectory(folder) == trajectory(run("zero2"))
    assert weights_hash(folder) == weights_hash(run("zero2"))

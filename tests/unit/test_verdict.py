"""From the outcome files of the ranks to one exit code and one message."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.verdict import Verdict, judge
from trainer.config.run_folder import RunFolder, write_json

CRASH = "Traceback (most recent call last):\n  ...\nValueError: rank went wrong\n"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "logs").mkdir()
    return RunFolder(tmp_path)


def write(folder: RunFolder, rank: int, kind: str, exit_code: int, *, time: float = 100.0, **more: str) -> None:
    outcome: dict[str, Any] = {"rank": rank, "host": f"node{rank}", "time_seconds": time, "kind": kind}
    outcome |= {"exit_code": exit_code, "message": "", "traceback": "", **more}
    folder.outcome(rank).write_text(json.dumps(outcome), encoding="utf-8")


def verdict(folder: RunFolder, *, ranks: int = 2, returncode: int = 1, interrupted: bool = False) -> Verdict:
    return judge(folder, world_size=ranks, returncode=returncode, interrupted=interrupted)


def save_checkpoint(folder: RunFolder, step: int) -> None:
    folder.checkpoint(step).mkdir(parents=True)


def test_a_run_is_done_when_every_rank_says_so(folder: RunFolder) -> None:
    write(folder, 0, "done", 0)
    write(folder, 1, "done", 0)
    assert verdict(folder, returncode=0) == Verdict(0, "")


def test_a_run_that_finished_before_the_signal_was_seen_is_done(folder: RunFolder) -> None:
    write(folder, 0, "done", 0)
    assert verdict(folder, ranks=1, returncode=0, interrupted=True) == Verdict(0, "")


def test_a_wrong_input_is_exit_code_2_and_its_own_words(folder: RunFolder) -> None:
    write(folder, 0, "input", 2, message="train.jsonl:3: not JSON.")
    write(folder, 1, "input", 2, message="train.jsonl:3: not JSON.")
    assert verdict(folder) == Verdict(2, "train.jsonl:3: not JSON.")


def test_the_rank_that_crashed_first_speaks(folder: RunFolder) -> None:
    write(folder, 0, "crash", 1, time=100.5, traceback="RuntimeError: connection closed by peer\n")
    write(folder, 1, "crash", 1, time=100.1, traceback=CRASH)
    write(folder, 2, "crash", 1, time=100.9, traceback="RuntimeError: connection closed by peer\n")
    found = verdict(folder, ranks=3)
    assert found.exit_code == 1
    assert found.message.startswith(f"rank 1 on node1 failed first:\n{CRASH}Logs: {folder.logs}. ")
    assert "connection closed" not in found.message


def test_a_crash_outweighs_ranks_that_stopped_or_finished(folder: RunFolder) -> None:
    write(folder, 0, "done", 0, time=1.0)
    write(folder, 1, "stopped", 75, time=2.0)
    write(folder, 2, "crash", 1, time=3.0, traceback=CRASH)
    assert verdict(folder, ranks=3).message.startswith("rank 2 on node2 failed first:")


def test_a_crash_says_how_to_go_on_from_the_newest_checkpoint(folder: RunFolder) -> None:
    save_checkpoint(folder, 100)
    save_checkpoint(folder, 200)
    (folder.checkpoints / "step_000300.part").mkdir()  # unfinished: it has another name
    write(folder, 0, "crash", 1, traceback=CRASH)
    found = verdict(folder, ranks=1)
    assert found.message.endswith(f"Go on from step 200 with: retain train --resume {folder.path}")


def test_a_loss_that_is_not_finite_says_what_to_look_at(folder: RunFolder) -> None:
    write(folder, 0, "non-finite", 1, message="step 7: the loss is nan")
    found = verdict(folder, ranks=1)
    assert found == Verdict(
        1,
        "rank 0 on node0: step 7: the loss is nan. Lower training.learning_rate or look at the data of this step. "
        "There is no checkpoint yet: start the run again.",
    )


def test_a_rank_that_ended_without_a_word_is_named(folder: RunFolder) -> None:
    write(folder, 0, "done", 0)
    write(folder, 2, "done", 0)
    found = verdict(folder, ranks=4, returncode=-9)
    assert found.exit_code == 1
    assert found.message.startswith("rank(s) 1, 3 ended without a word (launcher exit -9): killed, perhaps by the")


def test_a_rank_whose_outcome_was_cut_short_counts_as_silent(folder: RunFolder) -> None:
    folder.outcome(0).write_text('{"rank": 0, "ki')
    assert verdict(folder, ranks=1).message.startswith("rank(s) 0 ended without a word")


def test_outcomes_of_ranks_that_this_run_does_not_have_are_not_read(folder: RunFolder) -> None:
    write(folder, 0, "done", 0)
    write(folder, 1, "crash", 1, traceback=CRASH)
    assert verdict(folder, ranks=1, returncode=0) == Verdict(0, "")


def test_ranks_that_stopped_together_leave_exit_code_75_and_the_way_on(folder: RunFolder) -> None:
    save_checkpoint(folder, 4)
    write(folder, 0, "stopped", 75)
    write(folder, 1, "stopped", 75)
    found = verdict(folder, interrupted=True)
    assert found == Verdict(
        75, f"Stopped with a complete checkpoint. Go on from step 4 with: retain train --resume {folder.path}"
    )


def test_an_interrupted_run_with_a_checkpoint_can_go_on(folder: RunFolder) -> None:
    save_checkpoint(folder, 4)
    found = verdict(folder, returncode=-9, interrupted=True)
    assert found == Verdict(75, f"Stopped. Go on from step 4 with: retain train --resume {folder.path}")


def test_an_interrupted_run_without_a_checkpoint_starts_again(folder: RunFolder) -> None:
    found = verdict(folder, returncode=-9, interrupted=True)
    assert found == Verdict(130, "Stopped. There is no checkpoint yet: start the run again.")


def test_ranks_that_could_not_start_are_told_with_the_last_lines_of_the_launcher(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.logs.mkdir()
    folder.launcher_log.write_text("first\n" + "noise\n" * 20 + "ImportError: libfoo.so\n", encoding="utf-8")
    verdict = judge(folder, world_size=1, returncode=1, interrupted=False)
    assert verdict.exit_code == 1
    assert "not able to start" in verdict.message
    assert verdict.message.endswith("  ImportError: libfoo.so")
    assert "first" not in verdict.message


def test_a_rank_that_only_lost_its_peer_does_not_take_the_blame_for_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(
        folder.outcome(0),
        {
            "rank": 0,
            "host": "node1",
            "time_seconds": 1.0,
            "kind": "crash",
            "exit_code": 1,
            "message": "[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234",
            "traceback": "Traceback ...",
        },
    )
    verdict = judge(folder, world_size=2, returncode=1, interrupted=False)
    assert verdict.exit_code == 1
    assert verdict.message.startswith("rank(s) 1 ended without a word")
    assert "Rank 0 on node1 lost its connection to it." in verdict.message

"""A run whose work is done ends with the code of its work, whatever torch's threads still hold."""

import subprocess
import sys

import pytest

from tests.harness import REPOSITORY

NUM_LAUNCHES = 4
TIMEOUT_SECONDS = 120


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of tests/system/leaving_rank.py."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return subprocess.run(
        (sys.executable, *launcher, "-m", "tests.system.leaving_rank", *arguments),
        cwd=REPOSITORY,
        timeout=TIMEOUT_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )


def test_ranks_end_with_their_own_code() -> None:
    for _ in range(NUM_LAUNCHES):
        ended = launch()
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("all is done") == 2


def test_pythons_own_shutdown_aborts() -> None:
    """So the test above can fail: it is the same program."""
    for _ in range(NUM_LAUNCHES):
        ended = launch("plainly")
        assert ended.stdout.count("all is done") == 2
        if "SIGABRT" in ended.stderr:
            return
    pytest.skip(f"torch ended cleanly {NUM_LAUNCHES} times: its fault may be mended, or this machine too quiet for it")

"""A loss or a gradient norm that is not finite ends the run before the optimizer steps, in words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.verdict import judge
from tests.demo_assets import needs_demo_packages
from tests.harness import launch_with_worker, trajectory
from trainer.config.run_folder import RunFolder

pytestmark = needs_demo_packages


@pytest.mark.parametrize("layout", ["layout.strategy=zero2", "layout.strategy=ddp"])
def test_a_gradient_norm_that_overflows_touches_no_weight(
    run: Callable[[str], Path], tmp_path: Path, layout: str
) -> None:
    run("ddp")  # assets and operators are there
    folder = tmp_path / "run"
    done = launch_with_worker("tests/equivalence/planted_overflow.py", folder, layout)
    assert done.returncode != 0
    assert (folder / "weights.txt").read_text(encoding="utf-8") == "untouched"
    outcome = (folder / "logs/outcome_rank_00000.json").read_text(encoding="utf-8")
    assert '"kind": "non-finite"' in outcome
    assert "step 1: gradient norm is " in outcome
    assert "the optimizer did not step" in outcome


def test_a_loss_that_is_no_number_on_one_rank_stops_all_ranks_at_that_step(
    run: Callable[[str], Path], tmp_path: Path
) -> None:
    run("ddp")
    folder = tmp_path / "run"
    done = launch_with_worker("tests/equivalence/planted_nan.py", folder, "layout.strategy=zero2")
    assert done.returncode != 0
    assert len(trajectory(folder)) == 2
    for rank in (0, 1):
        outcome = RunFolder(folder).outcome(rank).read_text(encoding="utf-8")
        assert "step 3: the loss is nan; the optimizer did not step" in outcome
    verdict = judge(RunFolder(folder), world_size=2, returncode=done.returncode, interrupted=False)
    assert verdict.exit_code == 1
    assert "Lower training.learning_rate" in verdict.message
    assert "Traceback" not in verdict.message

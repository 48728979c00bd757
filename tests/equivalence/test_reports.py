"""The same measurement on every layout: records of the base model are equal byte for byte."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.demo_assets import needs_demo_packages
from trainer.config.freezing import frozen_names
from trainer.config.plan import read_plan

pytestmark = needs_demo_packages


@pytest.mark.parametrize("layout", ["single", "zero3"])
def test_the_report_does_not_depend_on_the_number_of_ranks(run: Callable[[str], Path], layout: str) -> None:
    # The base model is the same under every layout, and batches are cut alike: equal bytes, not just equal means.
    before = [path.read_bytes() for path in sorted((run(layout) / "evaluation" / "step_000000").iterdir())]
    reference = [path.read_bytes() for path in sorted((run("ddp") / "evaluation" / "step_000000").iterdir())]
    assert len(before) == 13
    assert before == reference


def test_frozen_weights_stay_as_they_were(run: Callable[[str], Path]) -> None:
    plan = read_plan(run("frozen zero3") / "plan.json")
    base = load_file(Path(plan.model_folder) / "model.safetensors")
    trained = load_file(run("frozen zero3") / "checkpoints/step_000012/weights/model.safetensors")
    kept = {name for name, tensor in base.items() if torch.equal(tensor, trained[name])}
    assert kept == frozen_names(base, plan.config.freeze)
    assert len(base) > len(kept) > 20

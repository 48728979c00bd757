"""The same measurement on every layout: records of the base model are equal byte for byte."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.demo_assets import needs_demo_packages
from trainer.config.freezing import frozen_names
from trainer.config.plan import read_plan
from trainer.evaluation.drift import read_kept

pytestmark = needs_demo_packages


def measured_base(run_folder: Path) -> tuple[dict[str, bytes], dict[str, list[bytes]]]:
    """All records before training, those of the second measurement included; and what is kept of the base."""
    folder = run_folder / "evaluation/step_000000"
    records = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jsonl")}
    kept = {
        path.stem: [part.tobytes() for one in read_kept(path).values() for part in (one.ids_NK, one.logprobs_NK)]
        for path in folder.rglob("*.npz")
    }
    return records, kept


@pytest.mark.parametrize("layout", ["single", "ddp4", "zero3"])
def test_the_report_does_not_depend_on_the_number_of_ranks(run: Callable[[str], Path], layout: str) -> None:
    # The base model is the same under every layout, and batches are cut alike: equal bytes, not just equal means.
    assert read_plan(run(layout) / "plan.json").config.evaluation.baseline == "measure"  # not taken from the other
    records, kept = measured_base(run(layout))
    assert len(records) == 13 + 7
    assert len(kept) == 6
    assert (records, kept) == measured_base(run("ddp"))


def test_frozen_weights_stay_as_they_were(run: Callable[[str], Path]) -> None:
    plan = read_plan(run("frozen zero3") / "plan.json")
    base = load_file(Path(plan.model_folder) / "model.safetensors")
    trained = load_file(run("frozen zero3") / "checkpoints/step_000012/weights/model.safetensors")
    kept = {name for name, tensor in base.items() if torch.equal(tensor, trained[name])}
    assert kept == frozen_names(base, plan.config.freeze)
    assert len(base) > len(kept) > 20

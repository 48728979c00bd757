"""The same mathematics on every layout: real processes, real gloo, real ZeRO, a real model and real data."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.demo_assets import needs_demo_packages
from tests.harness import largest_deviation, launch_with_worker, trajectory
from trainer.config.freezing import frozen_names
from trainer.config.plan import read_plan

pytestmark = needs_demo_packages

LAYOUT_TOLERANCE = 1e-4
"""Relative, losses and gradient norms, fp32, at every one of 12 steps."""

INT8_TOLERANCE = 1e-3
"""Relative, first loss against the fp32 base: rounding of weights and activations to 8 bits."""


@pytest.mark.parametrize("layout", ["ddp", "zero1", "zero2", "zero3", "zero2 offload", "zero3 offload"])
def test_two_ranks_take_the_same_steps_as_one(run, layout: str) -> None:
    deviation = largest_deviation(trajectory(run("single")), trajectory(run(layout)))
    print(f"{layout}: largest relative deviation {deviation:.1e}")
    assert deviation < LAYOUT_TOLERANCE


@pytest.mark.parametrize(("one", "two"), [("lora single", "lora zero3"), ("dora single", "dora zero2")])
def test_adapters_take_the_same_steps_on_two_ranks(run, one: str, two: str) -> None:
    deviation = largest_deviation(trajectory(run(one)), trajectory(run(two)))
    print(f"{two}: largest relative deviation {deviation:.1e}")
    assert deviation < LAYOUT_TOLERANCE


def test_frozen_weights_stay_and_the_others_take_the_same_steps_on_two_ranks(run) -> None:
    deviation = largest_deviation(trajectory(run("frozen single")), trajectory(run("frozen zero3")))
    print(f"frozen zero3: largest relative deviation {deviation:.1e}")
    assert deviation < LAYOUT_TOLERANCE
    plan = read_plan(run("frozen zero3") / "plan.json")
    base = load_file(Path(plan.model_folder) / "model.safetensors")
    trained = load_file(run("frozen zero3") / "checkpoints/step_000012/weights/model.safetensors")
    kept = {name for name, tensor in base.items() if torch.equal(tensor, trained[name])}
    assert kept == frozen_names(base, plan.config.freeze)
    assert len(base) > len(kept) > 20


def test_two_runs_with_one_seed_give_identical_losses(run) -> None:
    assert trajectory(run("zero2")) == trajectory(run("zero2 again"))


def test_another_seed_gives_other_losses(run) -> None:
    assert trajectory(run("single"))[0] != trajectory(run("single, another seed"))[0]


@pytest.mark.parametrize("layout", ["single", "zero3"])
def test_the_report_does_not_depend_on_the_number_of_ranks(run, layout: str) -> None:
    # The base model is the same under every layout, and batches are cut alike: equal bytes, not just equal means.
    before = [path.read_bytes() for path in sorted((run(layout) / "evaluation" / "step_000000").iterdir())]
    reference = [path.read_bytes() for path in sorted((run("ddp") / "evaluation" / "step_000000").iterdir())]
    assert len(before) == 13
    assert before == reference


def test_a_broken_normaliser_is_caught(run, tmp_path) -> None:
    run("ddp")
    done = launch_with_worker("tests/equivalence/broken_normaliser.py", tmp_path / "run", "layout.strategy=ddp")
    assert done.returncode == 0, done.stderr
    assert largest_deviation(trajectory(run("ddp")), trajectory(tmp_path / "run")) > LAYOUT_TOLERANCE


def test_an_8_bit_base_begins_with_the_loss_of_the_whole_one_and_learns(run) -> None:
    whole, few_bits = trajectory(run("lora single")), trajectory(run("int8"))
    deviation = abs(few_bits[0][0] - whole[0][0]) / whole[0][0]
    print(f"int8: first loss deviates by {deviation:.1e}")
    assert 0 < deviation < INT8_TOLERANCE
    assert few_bits[-1][0] < 0.8 * few_bits[0][0]

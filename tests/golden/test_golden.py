"""What users and libraries are given, as text that a person has read: rewritten only with `pytest --accept`."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from launch.show import plan_text
from tests.conftest import Golden
from tests.harness import retain
from tests.recipe import GIB, Recipe, write_large_model
from trainer.config.deepspeed import deepspeed_config
from trainer.config.plan import Plan
from trainer.config.schema import Precision, Strategy

ARGV_LAYOUTS: dict[str, tuple[Strategy, int]] = {
    "argv_single.txt": ("single", 1),
    "argv_ddp_2_ranks.txt": ("ddp", 2),
    "argv_zero2_1_rank.txt": ("zero2", 1),
    "argv_zero2_4_ranks.txt": ("zero2", 4),
}
DEEPSPEED_LAYOUTS: dict[str, tuple[Strategy, Precision]] = {
    f"deepspeed_{strategy}_{precision}.json": (strategy, precision)
    for strategy in ("zero1", "zero2", "zero3")
    for precision in ("fp32", "bf16")
}


def normalised(text: str, recipe: Recipe) -> str:
    """The text without what differs between machines."""
    return text.replace(str(recipe.folder), "/FOLDER").replace(sys.executable, "PYTHON") + "\n"


def laid_out(recipe: Recipe, strategy: Strategy, ranks: int, *overrides: str) -> Plan:
    """A plan on four GPUs of 80 GiB."""
    layout = (f"layout.strategy={strategy}", f"layout.processes={ranks}")
    return recipe.plan(*layout, *overrides, machine=recipe.machine(*[80 * GIB] * 4))


@pytest.mark.parametrize("name", DEEPSPEED_LAYOUTS)
def test_deepspeed_is_given_this_configuration(recipe: Recipe, golden: Golden, name: str) -> None:
    strategy, precision = DEEPSPEED_LAYOUTS[name]
    # 8 examples a step = 2 ranks * 2 micro-batches * 2.
    asked = (f"training.precision={precision}", "training.examples_per_device=2", "training.max_gradient_norm=0.5")
    plan = laid_out(recipe, strategy, 2, *asked)
    golden.check(name, json.dumps(deepspeed_config(plan), indent=2) + "\n")


def test_on_a_cpu_deepspeed_overlaps_nothing(recipe: Recipe) -> None:
    plan = recipe.plan("layout.strategy=zero2", "layout.processes=2")
    assert deepspeed_config(plan)["zero_optimization"]["overlap_comm"] is False


@pytest.mark.parametrize("name", ARGV_LAYOUTS)
def test_ranks_are_started_by_this_command(recipe: Recipe, golden: Golden, name: str) -> None:
    strategy, ranks = ARGV_LAYOUTS[name]
    golden.check(name, normalised("\n".join(laid_out(recipe, strategy, ranks).argv), recipe))


# On a model of 2.5 GiB in fp32, so that every number of the page is seen.
PLANS: dict[str, tuple[tuple[str, ...], int]] = {
    "plan_all_decided_by_retain.txt": (
        ("method=lora", "training.precision=bf16", "training.warmup_steps=2", "data.tasks.ner.weight=0.25"),
        4,
    ),
    "plan_all_as_asked.txt": (
        (
            *("layout={strategy: zero3, processes: 2, device: cpu}", "training.examples_per_device=4"),
            *("training.activation_checkpointing=true", "evaluation.examples_per_batch=4"),
        ),
        0,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_reads_like_this(recipe: Recipe, golden: Golden, name: str) -> None:
    overrides, num_gpus = PLANS[name]
    model = write_large_model(recipe.folder / "large")
    plan = recipe.plan(f"model.path={model}", *overrides, machine=recipe.machine(*[8 * GIB] * num_gpus))
    golden.check(name, normalised(plan_text(plan), recipe))


def test_editors_are_given_this_schema(golden: Golden) -> None:
    # In a process of its own: typing keeps one of several equal unions, and another library's may list its words in
    # another order.
    golden.check("schema.json", retain("schema").stdout)


def test_another_text_fails_with_the_difference_and_the_way_to_accept_it(golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("same\nold\n")
    strict = dataclasses.replace(golden, folder=tmp_path, accept=False)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)--- golden/a\.txt.* same\n-old\n\+new.*--accept"):
        strict.check("a.txt", "same\nnew\n")
    with pytest.raises(pytest.fail.Exception, match=r"(?s)\+new.*--accept"):
        strict.check("not_there_yet.txt", "new\n")
    assert (tmp_path / "a.txt").read_text() == "same\nold\n"


def test_accepting_rewrites_the_file(golden: Golden, tmp_path: Path) -> None:
    dataclasses.replace(golden, folder=tmp_path, accept=True).check("a.txt", "new\n")
    dataclasses.replace(golden, folder=tmp_path, accept=False).check("a.txt", "new\n")
    assert (tmp_path / "a.txt").read_text() == "new\n"


def test_every_golden_file_belongs_to_a_test() -> None:
    known = {*ARGV_LAYOUTS, *DEEPSPEED_LAYOUTS, *PLANS, "schema.json"}
    found = {path.name for path in Path(__file__).parent.iterdir() if path.suffix in (".txt", ".json")}
    assert found == known

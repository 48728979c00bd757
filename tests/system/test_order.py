"""The order of the examples as ranks really trained on them: the same file on 1, 2 and 4 of them, byte for byte."""

import csv
from typing import Any

import pytest

from tests.demo_assets import needs_demo_packages
from tests.fleet import Case, run_fleet
from tests.harness import REPOSITORY

pytestmark = needs_demo_packages

NUM_STEPS = 5
SHORT = (f"training.num_steps={NUM_STEPS}", "training.warmup_steps=1", "run.record_order=true")
BY_TOKENS = ("training.examples_per_step=null", "training.examples_per_device=2")
RECIPES = {
    "by examples": ("training.examples_per_step=12", "training.examples_per_device=3"),
    "by examples, another seed": ("training.examples_per_step=12", "training.examples_per_device=3", "run.seed=18"),
    "by examples, packed": ("training.examples_per_step=12", "training.examples_per_device=2", "data.packing=true"),
    "by tokens": (*BY_TOKENS, "training.tokens_per_step=700"),
    "streamed": (
        *("training.examples_per_step=12", "training.examples_per_device=3"),
        *("data.tasks.dialogue.streaming=true", "data.stream_window_examples=12", "data.tasks.dialogue.weight=5"),
    ),
    "packed, in stages": (*BY_TOKENS, "training.tokens_per_step=1024"),
}
LAYOUTS = {1: "single", 2: "zero2", 4: "ddp"}


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], bytes]:
    """order.csv by recipe and number of ranks."""
    found = {}
    for ranks, layout in LAYOUTS.items():
        root = tmp_path_factory.mktemp(f"on_{ranks}")
        cases = {
            name: Case(
                overrides=(*SHORT, *recipe, f"layout.processes={ranks}", f"layout.strategy={layout}"),
                config=REPOSITORY / f"configs/{'multitask' if 'stages' in name else 'demo'}.yaml",
            )
            for name, recipe in RECIPES.items()
        }
        results: dict[str, dict[str, Any]] = run_fleet(cases, root, processes=ranks)
        for number, name in enumerate(cases):
            assert "steps" in results[name], results[name].get("error")
            found[name, ranks] = (root / f"run_{number}/order.csv").read_bytes()
    return found


def rows(order: bytes) -> list[list[str]]:
    header, *rows = csv.reader(order.decode().splitlines())
    assert header == ["step", "task", "example_id"]
    return rows


@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_ranks_trains_on_the_same_examples_in_the_same_steps(
    orders: dict[tuple[str, int], bytes], name: str
) -> None:
    assert orders[name, 1] == orders[name, 2] == orders[name, 4]
    steps = [int(step) for step, _, _ in rows(orders[name, 1])]
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, NUM_STEPS + 1))


def test_a_step_by_examples_has_as_many_packed_or_not(orders: dict[tuple[str, int], bytes]) -> None:
    assert orders["by examples", 1] == orders["by examples, packed", 1]
    assert len(rows(orders["by examples", 1])) == 12 * NUM_STEPS


def test_another_seed_trains_in_another_order(orders: dict[tuple[str, int], bytes]) -> None:
    assert orders["by examples", 1] != orders["by examples, another seed", 1]


def test_stages_follow_each_other(orders: dict[tuple[str, int], bytes]) -> None:
    # Two of five steps are the first stage, which does not know the two small tasks.
    tasks = {step: {task for s, task, _ in rows(orders["packed, in stages", 1]) if s == step} for step in "12345"}
    assert not {"dialogue", "quotes"} & (tasks["1"] | tasks["2"])
    assert "dialogue" in tasks["3"]

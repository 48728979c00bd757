"""Every cell of the compatibility matrix: what is allowed trains, and rightly; what is refused, the plan refuses.

Two steps of a tiny Llama (causal_lm) and a tiny encoder with a fresh head (classification), on real data.
"""

from collections.abc import Callable
from typing import Any

import pytest

from launch.compatibility import Combination, refusal
from tests.compatibility.cells import ALLOWED, ON_CPU, ON_GPU, REFUSED, faults_of, name_of, overrides_of
from tests.demo_assets import needs_demo_packages
from tests.equivalence.conftest import computes_in_fp16
from tests.fleet import Case, run_fleet, tiny_recipe
from tests.recipe import GIB, Recipe
from tests.stand_ins import stand_in
from trainer.config.errors import ConfigError


def cpu_twins_in_fp16() -> list[Combination]:
    """Cells that the plan keeps for a GPU, but whose code a processor with fp16 can run."""
    return [cell for cell in ON_GPU if cell.precision == "fp16" and cell.quantisation == "none"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results of all cells that a CPU can train, by name: single on one process, the others on two."""
    root = tmp_path_factory.mktemp("matrix")
    recipes = {
        "causal_lm": tiny_recipe(root, stand_in(root / "llama", "llama")),
        "classification": tiny_recipe(root, stand_in(root / "bert", "bert")),
    }
    results: dict[str, dict[str, Any]] = {}
    for processes in (1, 2):
        cases = {}
        for cell in [*ON_CPU, *(cpu_twins_in_fp16() if computes_in_fp16() else [])]:
            if (cell.strategy == "single") == (processes == 1):
                as_fp32 = [o for o in overrides_of(cell, processes=processes) if not o.startswith("layout.device")]
                bypass = ("precision", "fp16") if cell.precision == "fp16" else None
                planned = [o.replace("precision=fp16", "precision=bf16") for o in as_fp32]
                cases[name_of(cell)] = Case(config=recipes[cell.objective], overrides=tuple(planned), bypass=bypass)
        folder = root / f"on_{processes}"
        folder.mkdir()
        results |= run_fleet(cases, folder, processes=processes)
    return results


@needs_demo_packages
def test_every_allowed_cell_takes_the_steps_of_the_reference(trained: dict[str, dict[str, Any]]) -> None:
    cells = [cell for cell in ON_CPU if name_of(cell) in trained]
    twins = [cell for cell in cpu_twins_in_fp16() if name_of(cell) in trained]
    wrong = {name_of(cell): faults for cell in [*cells, *twins] if (faults := faults_of(cell, trained))}
    print(
        f"{len(cells)} cells trained on a CPU, {len(ON_GPU)} need a GPU ({len(twins)} of them in fp16 tried on this "
        f"processor), {len(REFUSED)} refused"
    )
    assert wrong == {}
    assert len(cells) == len(ON_CPU)


@needs_demo_packages
def test_a_cell_that_trains_wrongly_is_seen(trained: dict[str, dict[str, Any]]) -> None:
    cell = next(cell for cell in ON_CPU if cell.strategy == "zero2" and cell.precision == "fp32")
    steps = [list(step) for step in trained[name_of(cell)]["steps"]]
    steps[1][1] *= 1.0001
    assert faults_of(cell, {**trained, name_of(cell): {"steps": steps}}) != []
    assert faults_of(cell, {**trained, name_of(cell): {"error": "RuntimeError: x"}}) == ["RuntimeError: x"]


def test_the_counts_of_cells_change_only_on_purpose() -> None:
    # CPU: 9 ways to spread * 2 methods * 2 precisions * 2 objectives, and int8 under LoRA: 2 precisions * 2 objectives.
    # GPU: 9 * 2 * 3 * 2, and int8 and int4 under LoRA: 2 * 3 * 2.
    assert (len(ON_CPU), len(ON_GPU)) == (9 * 2 * 2 * 2 + 2 * 2, 9 * 2 * 3 * 2 + 2 * 3 * 2)
    assert len(REFUSED) == 1080 - len(ON_CPU) - len(ON_GPU)


@pytest.fixture
def plan_of(recipe: Recipe) -> Callable[[Combination], Any]:
    """Plans a cell on a made-up machine: with two GPUs where the cell wants cuda."""
    machine = {"cpu": recipe.machine(), "cuda": recipe.machine(80 * GIB, 80 * GIB)}

    def plan(cell: Combination) -> Any:
        processes = 1 if cell.strategy == "single" else 2
        return recipe.plan(*overrides_of(cell, processes=processes), machine=machine[cell.device])

    return plan


def test_the_plan_accepts_every_allowed_cell(plan_of: Callable[[Combination], Any]) -> None:
    for cell in ALLOWED:
        plan = plan_of(cell)
        assert (plan.strategy, plan.device) == (cell.strategy, cell.device)
        assert plan.config.method == cell.method


def test_the_plan_refuses_every_other_cell_and_names_a_way_out(plan_of: Callable[[Combination], Any]) -> None:
    for cell in REFUSED:
        with pytest.raises(ConfigError) as caught:
            plan_of(cell)
        assert "\n" not in str(caught.value)
        found = refusal(cell)
        assert found is not None
        assert f"Set {found.advice(cell)}" in str(caught.value) or "Set method: lora" in str(caught.value)

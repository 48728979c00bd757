"""The cells of the compatibility matrix that need a GPU: each trains two steps on one, and rightly."""

import pytest
import torch

from tests.compatibility.cells import ON_GPU, faults_of, name_of, overrides_of
from tests.demo_assets import needs_demo_packages
from tests.fleet import Case, run_fleet, tiny_recipe
from tests.stand_ins import stand_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    needs_demo_packages,
]


def test_every_cell_of_a_gpu_takes_the_steps_of_one_process_in_fp32(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("matrix")
    recipes = {
        "causal_lm": tiny_recipe(root, stand_in(root / "llama", "llama")),
        "classification": tiny_recipe(root, stand_in(root / "bert", "bert")),
    }
    cases = {
        name_of(cell): Case(config=recipes[cell.objective], overrides=overrides_of(cell, processes=1))
        for cell in ON_GPU
    }
    trained = run_fleet(cases, root, processes=1)
    wrong = {name_of(cell): faults for cell in ON_GPU if (faults := faults_of(cell, trained))}
    print(f"{len(ON_GPU)} cells trained on {torch.cuda.get_device_name()}")
    assert wrong == {}

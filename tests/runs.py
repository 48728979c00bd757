"""Short runs of one recipe under every layout, each made once a session and only if a test asks for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.demo import prepare_demo
from launch.machine import this_machine
from tests.harness import train

FROZEN = "freeze={embeddings: true, first_layers: 2, patterns: ['layers.3.mlp']}"
DORA = "lora={rank: 4, dora: true, rank_stabilised: true, targets: [q_proj, v_proj]}"
INT8 = ("layout.strategy=single", "layout.processes=1", "model.quantisation=int8")
MEASURED = ("evaluation.baseline=measure", "layout.threads_per_process=1")
LAYOUTS = {
    "single": ("layout.strategy=single", "layout.processes=1", *MEASURED),
    "ddp": ("layout.strategy=ddp", *MEASURED),
    "ddp4": ("layout.strategy=ddp", "layout.processes=4", *MEASURED),
    "zero2": ("layout.strategy=zero2",),
    "zero3": ("layout.strategy=zero3", *MEASURED),
    "lora single": ("layout.strategy=single", "layout.processes=1", "method=lora"),
    "lora zero3": ("layout.strategy=zero3", "method=lora"),
    "frozen zero3": ("layout.strategy=zero3", FROZEN),
}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run folder of a layout by name."""
    prepare_demo("glassllm-en", machine=this_machine(), notify=print)
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("layout") / "run"
            train(folders[name], *LAYOUTS[name])
        return folders[name]

    return folder_of

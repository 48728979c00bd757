"""ZeRO-3 shards become files without the model being held twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from launch.demo import prepare_demo
from launch.machine import this_machine
from launch.operators import prepare_operators
from tests.demo_assets import needs_demo_packages
from tests.fleet import Case, tiny_recipe
from tests.harness import LAUNCH_TIMEOUT_SECONDS, REPOSITORY

pytestmark = needs_demo_packages

ALLOWED_MODELS = 1.5
"""One whole model on the main rank; the rest for a file being serialised, what libraries import, and the allocator."""


def write(folder: Path, *fault: str) -> dict[str, float]:
    """Consolidate a model of 550 MB from two ranks; its weights come out in folder/weights."""
    prepare_demo("glassllm-en", machine=this_machine(), notify=print)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=8
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    case = Case(
        config=tiny_recipe(folder, folder / "model"),
        overrides=(
            *("layout.strategy=zero3", "layout.processes=2", "data.sequence_length_tokens=64"),
            "freeze={embeddings: true, first_layers: 7}",  # no optimizer states for most of it
        ),
    )
    plan = case.plan(folder / "run")
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    environment = {**os.environ, **plan.environment, "PYTHONPATH": str(REPOSITORY)}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed leaves the process: holes in the heap do not count
    prepare_operators(environment, notify=print)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    script = ("-m", "tests.system.consolidation_peak", "plan.json", "weights", "result.json", *fault)
    subprocess.run(
        (sys.executable, *launcher, *script), env=environment, cwd=folder, timeout=LAUNCH_TIMEOUT_SECONDS, check=True
    )
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_the_main_rank_never_holds_the_model_twice(tmp_path: Path) -> None:
    found = write(tmp_path)
    print(f"memory rose by {found['models']:.2f} models")
    assert found["models"] < ALLOWED_MODELS
    assert found["files"] > 5
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "weights").state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in whole.items())


def test_a_second_copy_is_seen(tmp_path: Path) -> None:
    assert write(tmp_path, "twice")["models"] > ALLOWED_MODELS + 0.4

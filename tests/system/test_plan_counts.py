"""What the plan counts from files alone is what the ranks then hold."""

from pathlib import Path

import bitsandbytes
import pytest
import torch

from launch.demo import prepare_demo
from launch.machine import this_machine
from launch.memory import base_weight_bytes, read_model_facts
from launch.plan import make_plan
from tests.demo_assets import needs_demo_packages
from tests.harness import REPOSITORY
from tests.runs import DORA, FROZEN, INT8
from trainer.config.load import load_config
from trainer.config.plan import Plan
from trainer.config.schema import Quantisation
from trainer.model import count_parameters, load_base, load_model, quantised_loading

pytestmark = needs_demo_packages


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=full",),
        (FROZEN,),
        ("method=lora",),
        ("method=lora", "lora={rank: 3, targets: [q_proj, down_proj]}"),
        ("method=lora", DORA),
        ("method=lora", *INT8),
    ],
    ids=["full", "frozen", "lora on all linear layers", "lora on two", "dora", "int8"],
)
def test_the_plan_counts_the_parameters_of_the_real_model(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    plan = plan_of(tmp_path, *overrides)
    trainable, total = count_parameters(load_model(plan, torch.device("cpu")))
    assert (trainable, total) == (plan.memory.num_trainable_parameters, plan.memory.num_parameters)


def plan_of(tmp_path: Path, *overrides: str) -> Plan:
    machine = this_machine()
    prepare_demo("glassllm-en", machine=machine, notify=print)
    variables = {"RETAIN_CACHE": str(machine.cache_folder)}
    config = load_config(
        REPOSITORY / "configs/demo.yaml",
        overrides=[f"run.folder={tmp_path}/run", "evaluation.suite=null", *overrides],
        variables=variables,
    )
    return make_plan(config, machine=machine)


@pytest.mark.parametrize(("quantisation", "share_of_fp16"), [("int8", 0.5), ("int4", 0.25)])
def test_the_bytes_of_a_quantised_base_are_counted_exactly(quantisation: Quantisation, share_of_fp16: float) -> None:
    machine = this_machine()
    prepare_demo("glassllm-en", machine=machine, notify=print)
    folder = machine.cache_folder / "demo" / "models" / "glassllm-en"
    model = load_base(folder, attention="sdpa", **quantised_loading(quantisation, torch.device("cpu")))
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear8bitLt | bitsandbytes.nn.Linear4bit)]
    scales = sum(
        layer.weight.SCB.numel() if quantisation == "int8" else layer.weight.quant_state.absmax.numel()
        for layer in layers
    )
    stored = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert base_weight_bytes(read_model_facts(folder), quantisation) == stored + 4 * scales
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    few_bits = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    assert few_bits == share_of_fp16 * 2 * weights

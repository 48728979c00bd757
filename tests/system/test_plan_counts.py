"""What the plan counts from files alone is what the ranks then hold."""

from pathlib import Path

import pytest

from launch.demo import prepare_demo
from launch.machine import this_machine
from launch.plan import make_plan
from tests.demo_assets import needs_demo_packages
from tests.harness import REPOSITORY
from tests.runs import DORA, FROZEN
from trainer.config.load import load_config
from trainer.model import count_parameters, load_model

pytestmark = needs_demo_packages


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=full",),
        (FROZEN,),
        ("method=lora",),
        ("method=lora", "lora={rank: 3, targets: [q_proj, down_proj]}"),
        ("method=lora", DORA),
    ],
    ids=["full", "frozen", "lora on all linear layers", "lora on two", "dora"],
)
def test_the_plan_counts_the_parameters_of_the_real_model(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    machine = this_machine()
    prepare_demo("glassllm-en", machine=machine, notify=print)
    variables = {"RETAIN_CACHE": str(machine.cache_folder)}
    config = load_config(
        REPOSITORY / "configs/demo.yaml",
        overrides=[f"run.folder={tmp_path}/run", "evaluation.suite=null", *overrides],
        variables=variables,
    )
    plan = make_plan(config, machine=machine)
    trainable, total = count_parameters(load_model(plan))
    assert (trainable, total) == (plan.memory.num_trainable_parameters, plan.memory.num_parameters)

"""The demo: assets from installed packages, then the same path as any run, then what to look at."""

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.cache_folder import DemoAssetError
from launch.demo_data import prepare_tasks
from launch.demo_models import DemoModel, prepare_model
from launch.machine import Machine
from trainer.config.errors import InputError

CONFIGS: dict[DemoModel, str] = {"glassllm-en": "demo.yaml", "smollm2": "demo_smollm2.yaml"}
CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"


def prepare_demo(model: DemoModel, *, machine: Machine, notify: Callable[[str], None]) -> Path:
    """Convert the model and the data of the demo into the cache, once.

    Returns:
        The demo's configuration file.

    Raises:
        InputError: a package of requirements-demo.txt is not installed.
    """
    try:
        model_folder = prepare_model(model, machine.cache_folder, notify=notify)
        tasks_folder = prepare_tasks(machine.cache_folder, notify=notify)
    except DemoAssetError as error:
        raise InputError(str(error)) from None
    notify(f"model: {model_folder}")
    notify(f"data:  {tasks_folder}")
    return CONFIG_FOLDER / CONFIGS[model]


PROMPTS: dict[DemoModel, tuple[str, ...]] = {
    "glassllm-en": (
        "Is this review positive or negative?\nA warm, funny and moving film.\nAnswer:",
        "Translate into Spanish.\nChange password\nSpanish:",
    ),
    "smollm2": (
        "Is this review positive or negative?\nA warm, funny and moving film.",
        "Translate into Spanish.\nChange password",
    ),
}
"""Prompts in the form that each demo trains."""


def new_run_folder() -> str:
    """A name that no earlier demo has."""
    return f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}"


def next_commands(run_folder: str, prompts: Sequence[str]) -> str:
    """Commands to look further, ready to paste."""
    generate = "\n".join(f"  retain generate {run_folder} {shlex.quote(prompt)}" for prompt in prompts)
    return (
        f"Look further:\n"
        f"  retain report {run_folder}                  # the table again; report.html has the lost examples\n"
        f"  tensorboard --logdir {run_folder}/tensorboard\n"
        f"  retain export {run_folder} {run_folder}/exported\n"
        f"{generate}"
    )

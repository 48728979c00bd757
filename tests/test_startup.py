"""A command that only decides answers at once: it imports nothing that takes seconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

from launch.demo_data import prepare_tasks
from launch.demo_models import prepare_model
from tests.demo_assets import needs_demo_packages

REPOSITORY = Path(__file__).resolve().parent.parent
SLOW_TO_IMPORT = {"torch", "transformers", "deepspeed", "peft", "accelerate", "datasets", "numpy", "scipy"}
PLAN_TIMEOUT_SECONDS = 60


def slow_imports(report: str) -> set[str]:
    """Top-level names among SLOW_TO_IMPORT in the output of `python -X importtime`."""
    names = re.findall(r"^import time:.*\|\s*([\w.]+)$", report, flags=re.MULTILINE)
    return {name.split(".")[0] for name in names} & SLOW_TO_IMPORT


@needs_demo_packages
def test_retain_plan_imports_no_torch_and_no_numpy(tmp_path: Path) -> None:
    prepare_model("glassllm-en", tmp_path, notify=print)
    prepare_tasks(tmp_path, notify=print)
    plan = ["-m", "launch", "plan", "configs/demo.yaml", f"run.folder={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *plan],
        env={**os.environ, "RETAIN_CACHE": str(tmp_path)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PLAN_TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "launch.plan" in done.stderr
    assert slow_imports(done.stderr) == set()


def test_a_slow_import_is_found_in_the_report() -> None:
    report = "import time: self [us] | cumulative | imported package\nimport time:  99 |  500 |   numpy.linalg\n"
    assert slow_imports(report) == {"numpy"}

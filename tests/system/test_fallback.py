"""The single-device fallback in a real run: seen in the plan, on the screen, in the report and in TensorBoard."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.demo import prepare_demo
from launch.machine import this_machine
from tests.demo_assets import needs_demo_packages
from tests.harness import SHORT_RUN, retain

TOO_SMALL = ("layout.strategy=single", "layout.processes=1", "layout.memory_per_device_gib=0.015")
"""13.5 MiB may be used: less than the 13 MiB of model states and one example of full fine-tuning in fp32."""


@needs_demo_packages
def test_the_fallback_is_shown_recorded_and_trained(tmp_path: Path) -> None:
    prepare_demo("glassllm-en", machine=this_machine(), notify=print)
    short = [s for s in SHORT_RUN if not s.startswith("training.examples_per_device")]
    short += ["training.num_steps=4", "evaluation.examples_per_batch=1"]
    asked = ("configs/demo.yaml", *short, f"run.folder={tmp_path}/run", *TOO_SMALL)
    planned = retain("plan", *asked)
    assert planned.returncode == 0, planned.stderr
    assert "method: full -> lora  (the smallest way needs" in planned.stdout
    assert "model.quantisation: none -> int8" in planned.stdout
    assert "method lora, int8 base, fp32" in planned.stdout

    done = retain("train", *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decision: method: full -> lora" in done.stdout
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    assert (report["provenance"]["method"], report["provenance"]["quantisation"]) == ("lora", "int8")
    assert any(text.startswith("method: full -> lora (") for text in report["provenance"]["decisions"])
    assert "LoRA over an 8-bit base needs" in (tmp_path / "run/report.md").read_text(encoding="utf-8")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    (decisions,) = events.Tensors("decisions/text_summary")
    assert b"`method`: full -> **lora** (the smallest way needs" in decisions.tensor_proto.string_val[0]
    assert "parameters/text_summary" in events.Tags()["tensors"]
    assert (tmp_path / "run/checkpoints/step_000004/weights/adapter_model.safetensors").is_file()

    refused = retain("train", *asked, f"run.folder={tmp_path}/another", "layout.on_oversize=refuse")
    assert refused.returncode == 2
    assert "layout.on_oversize: refuse" in refused.stderr

"""What a person does with a finished run: report, export, generate."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.demo_assets import needs_demo_packages
from tests.harness import retain
from trainer.config.plan import read_plan
from trainer.model import load_model, load_weights

pytestmark = needs_demo_packages

LOGITS_TOLERANCE = 1e-5
"""Absolute, fp32: the same weights computed twice."""

MERGED_TOLERANCE = 1e-5
"""Relative to the largest logit (about 15), fp32: W + BA is rounded once where W x + B A x was rounded twice."""

PROMPT = "Is this review positive or negative?\nA warm film.\nAnswer:"


def trained_logits(folder: Path) -> torch.Tensor:
    """Logits of the model that the run trained, built as the run builds it."""
    plan = read_plan(folder / "plan.json")
    model = load_model(plan, torch.device("cpu"))
    load_weights(model, folder / "checkpoints/step_000012/weights")
    return logits_of(model, plan.model_folder)


def logits_of(model: torch.nn.Module, tokenizer_folder: str | Path) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(tokenizer_folder)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("layout", ["zero2", "zero3", "single"])
def test_exported_weights_give_the_trained_logits(run: Callable[[str], Path], tmp_path: Path, layout: str) -> None:
    target = tmp_path / "exported"
    done = retain("export", str(run(layout)), str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    exported = logits_of(AutoModelForCausalLM.from_pretrained(target), target)
    assert (exported - trained_logits(run(layout))).abs().max() < LOGITS_TOLERANCE
    base = logits_of(AutoModelForCausalLM.from_pretrained(read_plan(run(layout) / "plan.json").model_folder), target)
    assert (exported - base).abs().max() > 1.0  # training moved them: the export is not the base


@pytest.mark.parametrize("layout", ["lora zero3", "lora single"])
def test_an_exported_adapter_merged_or_not_gives_the_trained_logits(
    run: Callable[[str], Path], tmp_path: Path, layout: str
) -> None:
    trained = trained_logits(run(layout))
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    assert retain("export", str(run(layout)), str(merged)).returncode == 0
    assert retain("export", str(run(layout)), str(adapter), "--no-merge").returncode == 0
    difference = logits_of(AutoModelForCausalLM.from_pretrained(merged), merged) - trained
    assert difference.abs().max() < MERGED_TOLERANCE * trained.abs().max()
    alone = AutoPeftModelForCausalLM.from_pretrained(str(adapter))
    assert (logits_of(alone, adapter) - trained).abs().max() < LOGITS_TOLERANCE
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert tensors
    assert all(tensor.numel() > 0 for tensor in tensors.values())
    # 4 layers of 7 adapted matrices, a pair of factors each.
    assert len(tensors) == 4 * 7 * 2


def test_an_export_never_overwrites(run: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    done = retain("export", str(run("single")), str(tmp_path))
    assert done.returncode == 2
    assert "exists and is not empty" in done.stdout + done.stderr
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_generation_is_repeatable_and_temperature_has_an_effect(run: Callable[[str], Path]) -> None:
    ask = ("generate", str(run("single")), PROMPT, "--max-new-tokens", "12")
    greedy, again = retain(*ask), retain(*ask)
    assert greedy.returncode == 0, greedy.stdout + greedy.stderr
    assert greedy.stdout == again.stdout
    sampled = {retain(*ask, "--temperature", "3.0", "--seed", str(seed)).stdout for seed in (1, 2)}
    assert len(sampled | {greedy.stdout}) > 1


def test_the_report_is_shown_again_and_names_its_origin(run: Callable[[str], Path]) -> None:
    done = retain("report", str(run("zero2")))
    assert done.returncode == 0
    assert "Before and after training" in done.stdout
    assert "prose" in done.stdout
    markdown = (run("zero2") / "report.md").read_text(encoding="utf-8")
    for key in ("config_sha256", "torch", "seed", "zero2"):
        assert key in markdown


def test_tensorboard_shows_loss_speed_and_heldout_scores(run: Callable[[str], Path]) -> None:
    events = EventAccumulator(str(run("zero2") / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "speed/tokens_per_second",
        "train_task_loss/sentiment",
        "heldout/prose",
        "heldout/sentiment-accuracy",
    }
    assert expected <= tags
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("heldout/prose")] == [0, 12]


def test_only_one_rank_speaks_and_libraries_do_not(run: Callable[[str], Path]) -> None:
    logs = run("zero2") / "logs"
    assert {path.name for path in logs.glob("rank_*.log")} == {"rank_00000.log", "rank_00001.log"}
    assert "DeepSpeed" in (logs / "rank_00000.log").read_text(encoding="utf-8")

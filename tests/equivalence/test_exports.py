"""One trained model, four forms: adapters attached, merged, exported and read by others; and what travels along."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.demo_assets import needs_demo_packages
from tests.equivalence.classes import TOLERANCE
from tests.equivalence.conftest import Note, Row
from tests.fleet import tiny_recipe
from tests.harness import retain
from tests.stand_ins import stand_in
from trainer.config.plan import read_plan
from trainer.model import load_model, load_trained, load_weights

pytestmark = needs_demo_packages

PROMPT = "Is this review positive or negative?\nA warm film.\nAnswer:"


def attached(folder: Path) -> Any:
    """The model that the run trained, built as the run builds it."""
    plan = read_plan(folder / "plan.json")
    model = load_model(plan, torch.device("cpu"))
    load_weights(model, folder / "checkpoints/step_000012/weights")
    return model


def logits_of(model: Any, tokenizer_folder: str | Path) -> torch.Tensor:
    ids_BT = AutoTokenizer.from_pretrained(tokenizer_folder)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(input_ids=ids_BT).logits


def deviation(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference of a logit as a share of the largest logit."""
    return float((found - reference).abs().max() / reference.abs().max())


def spoiled(folder: Path) -> Any:
    """The trained model without one of its adapters' factors, as if it had been saved empty."""
    model = attached(folder)
    name, factor = next((n, p) for n, p in model.named_parameters() if "lora_B" in n)
    assert factor.abs().max() > 0, name
    factor.data.zero_()
    return model


@pytest.mark.parametrize("layout", ["lora single", "lora zero3"])
def test_adapters_attached_merged_exported_and_reloaded_give_the_same_logits(
    run: Callable[[str], Path], tmp_path: Path, note: Note, layout: str
) -> None:
    folder = run(layout)
    plan = read_plan(folder / "plan.json")
    merged_folder, adapter_folder = tmp_path / "merged", tmp_path / "adapter"
    assert retain("export", str(folder), str(merged_folder)).returncode == 0
    assert retain("export", str(folder), str(adapter_folder), "--no-merge").returncode == 0
    reference = logits_of(attached(folder), plan.model_folder)
    forms = {
        "merged": load_trained(plan, folder / "checkpoints/step_000012/weights", merge=True),
        "exported": AutoModelForCausalLM.from_pretrained(merged_folder),
        "reloaded": AutoPeftModelForCausalLM.from_pretrained(str(adapter_folder)),
    }
    far = {name: deviation(logits_of(model, merged_folder), reference) for name, model in forms.items()}
    caught = {
        "an adapter that was saved empty": deviation(logits_of(spoiled(folder), plan.model_folder), reference),
        "the base alone": deviation(
            logits_of(AutoModelForCausalLM.from_pretrained(plan.model_folder), plan.model_folder), reference
        ),
    }
    worst = max(far, key=far.__getitem__)
    note(Row(f"{layout}: attached, merged, exported, reloaded", len(far), far[worst], worst, TOLERANCE, caught))
    assert far[worst] <= TOLERANCE
    assert min(caught.values()) > TOLERANCE

    tensors = load_file(adapter_folder / "adapter_model.safetensors")
    assert all(tensor.numel() > 0 for tensor in tensors.values())
    assert len(tensors) == 4 * 7 * 2  # 4 layers of 7 adapted matrices, a pair of factors each; nothing of the base


@pytest.mark.parametrize("layout", ["single", "zero2", "zero3"])
def test_exported_weights_give_the_trained_logits(
    run: Callable[[str], Path], tmp_path: Path, note: Note, layout: str
) -> None:
    folder, target = run(layout), tmp_path / "exported"
    plan = read_plan(folder / "plan.json")
    done = retain("export", str(folder), str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    reference = logits_of(attached(folder), plan.model_folder)
    far = deviation(logits_of(AutoModelForCausalLM.from_pretrained(target), target), reference)
    base = AutoModelForCausalLM.from_pretrained(plan.model_folder)
    caught = {"the base": deviation(logits_of(base, target), reference)}
    note(Row(f"{layout}: trained, exported", 1, far, "exported", TOLERANCE, caught))
    assert far <= TOLERANCE < caught["the base"]


def test_tokenizer_chat_template_and_generation_settings_travel_along(tmp_path: Path) -> None:
    base = stand_in(tmp_path / "llama", "llama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
    tokenizer.save_pretrained(base)
    GenerationConfig(do_sample=True, temperature=0.3, top_p=0.8, eos_token_id=tokenizer.eos_token_id).save_pretrained(
        base
    )
    settings = ("layout.strategy=single", "layout.processes=1", "data.chat_template=true", "method=lora")
    done = retain("train", str(tiny_recipe(tmp_path, base)), *settings, f"run.folder={tmp_path}/run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert retain("export", f"{tmp_path}/run", f"{tmp_path}/exported").returncode == 0
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert exported.chat_template == tokenizer.chat_template
    assert exported(PROMPT).input_ids == tokenizer(PROMPT).input_ids
    settings_found = json.loads((tmp_path / "exported/generation_config.json").read_text(encoding="utf-8"))
    assert {key: settings_found[key] for key in ("do_sample", "temperature", "top_p")} == {
        "do_sample": True,
        "temperature": 0.3,
        "top_p": 0.8,
    }

"""The plan's memory estimate against the peak that a GPU really sees, over a grid of ways to train."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.demo_assets import needs_demo_packages
from tests.fleet import Case, run_fleet, tiny_recipe
from tests.stand_ins import stand_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    needs_demo_packages,
]

TOLERANCE = 0.10
"""Relative, predicted against measured peak."""

METHODS = {
    "full": ("method=full",),
    "lora": ("method=lora",),
    "int8": ("method=lora", "model.quantisation=int8"),
}
SPREADS = ("single", "zero2", "zero3")
RECOMPUTE = ("true", "false")


def model_and_text(folder: Path) -> Path:
    """A Llama of 300 million random weights, and examples that fill 1024 tokens; returns the recipe."""
    tokenizer_folder = stand_in(folder / "llama", "llama")
    config = LlamaConfig.from_pretrained(tokenizer_folder)
    config.update({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "vocab_size": 32000})
    config.update({"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64})
    config.update({"max_position_embeddings": 1024})
    LlamaForCausalLM(config).save_pretrained(tokenizer_folder)
    line = json.dumps({"text": " a" * 1000}) + "\n"
    (folder / "long.jsonl").write_text("".join(line.replace("{", f'{{"id": "{n}", ', 1) for n in range(64)))
    return tiny_recipe(folder, tokenizer_folder)


def test_the_plan_predicts_the_peak_of_every_case(tmp_path: Path) -> None:
    recipe = model_and_text(tmp_path)
    task = f"{{train: {tmp_path}/long.jsonl, heldout: {tmp_path}/long.jsonl, prompt: ' ', response: '{{{{ text }}}}'}}"
    common = (f"data.tasks.sentiment={task}", "data.sequence_length_tokens=1024", "data.padding=sequence_length")
    cases = {}
    for precision, method, spread, recompute in itertools.product(("fp32", "bf16"), METHODS, SPREADS, RECOMPUTE):
        if method != "int8" or (spread, recompute) == ("single", "true"):
            layout = (f"layout.strategy={spread}", "layout.processes=1", "layout.device=cuda")
            settings = (f"training.precision={precision}", f"training.activation_checkpointing={recompute}")
            name = f"{method} {precision} {spread} {'recomputed' if recompute == 'true' else 'kept'}"
            cases[name] = Case(config=recipe, overrides=(*common, *METHODS[method], *layout, *settings))
    assert len(cases) >= 12
    predicted = {name: case.plan(tmp_path / "unused").memory.total_bytes for name, case in cases.items()}
    found = run_fleet(cases, tmp_path, processes=1)
    far = {}
    for name, result in found.items():
        assert "steps" in result, f"{name}: {result['error']}"
        far[name] = predicted[name] / result["peak_bytes"] - 1
        print(f"{name}: predicted {predicted[name]:,}, measured {result['peak_bytes']:,}, off by {far[name]:+.1%}")
    assert {name: off for name, off in far.items() if abs(off) > TOLERANCE} == {}

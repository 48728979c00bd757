"""An 8-bit base under LoRA as it is loaded for training: what stays in fp32, what receives gradients, what is off."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt

from tests.demo_assets import needs_demo_packages
from tests.fleet import Case, tiny_recipe
from tests.stand_ins import stand_in
from trainer.model import load_model

pytestmark = needs_demo_packages

INT8 = ("method=lora", "model.quantisation=int8", "layout.strategy=single", "layout.processes=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model of a plan with an 8-bit base."""
    root = tmp_path_factory.mktemp("int8")
    plan = Case(config=tiny_recipe(root, stand_in(root / "llama", "llama")), overrides=INT8).plan(root / "run")
    assert plan.activation_checkpointing
    return load_model(plan, torch.device("cpu"))


def test_linear_layers_are_bytes_and_norms_and_head_are_fp32(model: Any) -> None:
    base = model.get_base_model()
    linear = [module for module in base.modules() if isinstance(module, Linear8bitLt)]
    assert len(linear) == 2 * 7  # q, k, v, o, gate, up, down of two layers
    assert {layer.weight.dtype for layer in linear} == {torch.int8}
    assert {name.split(".")[-2] for name, p in base.named_parameters() if p.dtype == torch.float32} >= {
        *("lm_head", "norm", "input_layernorm", "post_attention_layernorm", "embed_tokens"),
    }


def test_only_adapters_are_trained_and_gradients_reach_the_first_of_them(model: Any) -> None:
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    model.train()
    logits_BTV = model(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=False).logits
    logits_BTV.square().mean().backward()
    # lora_A's gradient is zero at first, because lora_B is; lora_B's is not.
    first = [p.grad for name, p in model.named_parameters() if ".layers.0." in name and "lora_B" in name]
    assert len(first) == 7
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in first)


def test_activations_are_recomputed_and_nothing_is_cached_while_training(model: Any) -> None:
    assert model.get_base_model().is_gradient_checkpointing
    model.train()
    output = model(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=False)
    assert output.past_key_values is None


def test_a_plan_of_an_8_bit_base_counts_half_of_16_bits(tmp_path: Path) -> None:
    root = stand_in(tmp_path / "llama", "llama").parent
    recipe = tiny_recipe(root, root / "llama")
    model = load_model(Case(config=recipe, overrides=INT8).plan(tmp_path / "run"), torch.device("cpu"))
    linear = [module for module in model.modules() if isinstance(module, Linear8bitLt)]
    in_bytes = sum(layer.weight.numel() * layer.weight.element_size() for layer in linear)
    in_16_bits = sum(2 * layer.in_features * layer.out_features for layer in linear)
    assert in_bytes == in_16_bits / 2

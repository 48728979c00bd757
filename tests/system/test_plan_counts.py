"""What the plan counts from files alone is what the ranks then hold."""

from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from launch.demo import prepare_demo
from launch.machine import this_machine
from launch.memory import moments_8bit_bytes, quantised_base_bytes
from launch.model_facts import read_model_facts
from launch.parameters import count_parameters as counted_parameters
from launch.parameters import read_parameters
from launch.plan import make_plan
from tests.demo_assets import needs_demo_packages
from tests.harness import REPOSITORY
from tests.recipe import Recipe
from tests.runs import DORA, FROZEN, INT8
from trainer.config.errors import ConfigError
from trainer.config.load import load_config
from trainer.config.plan import Plan
from trainer.config.schema import Quantisation, RunConfig
from trainer.engine.optimizer import adamw
from trainer.model import count_parameters, load_model

LORA = "method=lora"
CLASSIFIER = ("objective=classification", "classification={labels: [a, b, c]}")
LABELS = {"num_labels": 3}
FIRST_FROZEN = "freeze={embeddings: true, first_layers: 1}"
DECODER: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96},
    **{"max_position_embeddings": 64, "pad_token_id": 0},
}
LLAMA = {**DECODER, "num_key_value_heads": 2, "intermediate_size": 88, "tie_word_embeddings": True}
SIZES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64, "pad_token_id": 0},
    "opt": {**DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bert": {**DECODER, "intermediate_size": 64},
    "roberta": {**DECODER, "intermediate_size": 64},
    "distilbert": {
        **{"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 96},
        **{"max_position_embeddings": 64, "pad_token_id": 0},
    },
}

LANGUAGE_MODELS = [
    (kind, overrides)
    for kind in ("llama", "qwen2", "qwen3", "gpt2", "opt")
    for overrides in ((), (LORA,), (LORA, "lora={dora: true}"), (FIRST_FROZEN,))
] + [
    ("llama", (LORA, "lora={train_in_full: [embed_tokens]}")),
    ("llama", (LORA, "lora={train_in_full: [lm_head]}")),
    ("opt", (LORA, "lora={train_in_full: [embed_tokens, lm_head]}")),
    ("gpt2", (LORA, "lora={train_in_full: [wte, ln_f]}")),
    ("llama", (LORA, "lora={train_in_full: [mlp]}")),
]
CLASSIFIERS = [
    *((kind, AutoModelForCausalLM, over) for kind in ("llama", "gpt2", "opt") for over in ((), (LORA,))),
    *((kind, AutoModelForMaskedLM, ()) for kind in ("bert", "roberta", "distilbert")),
    *((kind, AutoModel, (FIRST_FROZEN,)) for kind in ("bert", "roberta", "distilbert", "gpt2", "opt")),
    *((kind, AutoModel, (LORA,)) for kind in ("bert", "roberta", "distilbert")),
    *((kind, AutoModelForMaskedLM, (LORA, "lora={dora: true}")) for kind in ("bert", "distilbert")),
    *((kind, AutoModelForSequenceClassification, ()) for kind in ("llama", "bert", "roberta", "distilbert")),
    *((kind, AutoModelForSequenceClassification, (LORA,)) for kind in ("llama", "bert", "distilbert")),
    ("bert", AutoModelForMaskedLM, (LORA, "lora={targets: [query, dense]}")),
]


def title(value: Any) -> str:
    return (
        " ".join(value) or "full" if isinstance(value, tuple) else value if isinstance(value, str) else value.__name__
    )


@pytest.mark.parametrize(("kind", "overrides"), LANGUAGE_MODELS, ids=title)
def test_parameters_of_language_models_are_those_of_torch(
    recipe: Recipe, tmp_path: Path, kind: str, overrides: tuple[str, ...]
) -> None:
    check_counts(recipe.config(*overrides), save(tmp_path / "small", kind, AutoModelForCausalLM))


def test_a_head_of_its_own_counts_and_may_be_trained_in_full(recipe: Recipe, tmp_path: Path) -> None:
    folder = save(tmp_path / "small", "llama", AutoModelForCausalLM, tie_word_embeddings=False)
    check_counts(recipe.config(), folder)
    check_counts(recipe.config(LORA, "lora={train_in_full: [embed_tokens, lm_head]}"), folder)
    check_counts(recipe.config(LORA, "lora={targets: [q_proj, lm_head]}"), folder)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_weights_that_are_shared_are_refused(recipe: Recipe, tmp_path: Path, target: str) -> None:
    # peft 0.21 merges the update of each of the two modules into the one weight: logits are off by their own size.
    facts = read_model_facts(save(tmp_path / "small", "llama", AutoModelForCausalLM))
    with pytest.raises(ConfigError, match=rf"found '{target}', but .* lora.train_in_full=\[{target}\]"):
        counted_parameters(recipe.config(LORA, f"lora={{targets: [q_proj, {target}]}}"), facts)


@pytest.mark.parametrize("overrides", [(), (LORA,)], ids=title)
def test_opt_with_narrow_embeddings_is_counted(recipe: Recipe, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    folder = save(tmp_path / "small", "opt", AutoModelForCausalLM, word_embed_proj_dim=16)
    check_counts(recipe.config(*overrides), folder)
    check_counts(recipe.config(*overrides, *CLASSIFIER), folder)


@pytest.mark.parametrize(("kind", "stored_as", "overrides"), CLASSIFIERS, ids=title)
def test_parameters_of_classifiers_are_those_of_torch(
    recipe: Recipe, tmp_path: Path, kind: str, stored_as: Any, overrides: tuple[str, ...]
) -> None:
    """Whatever the file holds: a language model, a bare one, or a classifier already."""
    labels = LABELS if stored_as is AutoModelForSequenceClassification else {}
    folder = save(tmp_path / "small", kind, stored_as, **labels)
    check_counts(recipe.config(*CLASSIFIER, *overrides), folder)


def save(folder: Path, kind: str, auto_class: Any, **changes: Any) -> Path:
    """A random model in a folder."""
    auto_class.from_config(CONFIG_MAPPING[kind](**{**SIZES[kind], **changes})).save_pretrained(folder)
    return folder


def load(config: RunConfig, folder: Path) -> Any:
    plan = Plan.model_construct(
        config=config, model_folder=str(folder), strategy="single", activation_checkpointing=False
    )
    return load_model(plan, torch.device("cpu"))


def check_counts(config: RunConfig, folder: Path) -> None:
    trainable, total = count_parameters(load(config, folder))
    frozen, trained = counted_parameters(config, read_model_facts(folder))
    assert (trained, frozen + trained) == (trainable, total)


@needs_demo_packages
@pytest.mark.parametrize(
    "overrides",
    [("method=full",), (FROZEN,), ("method=lora",), ("method=lora", DORA), ("method=lora", *INT8)],
    ids=["full", "frozen", "lora", "dora", "int8"],
)
def test_the_plan_holds_the_counts_of_the_real_model(tmp_path: Path, overrides: tuple[str, ...]) -> None:
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


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "distilbert"])
@pytest.mark.parametrize(("quantisation", "share_of_fp16"), [("int8", 0.5), ("int4", 0.25)])
def test_the_bytes_of_a_quantised_base_are_counted_exactly(
    recipe: Recipe, tmp_path: Path, kind: str, quantisation: Quantisation, share_of_fp16: float
) -> None:
    labels = CLASSIFIER if kind == "distilbert" else ()
    config = recipe.config(LORA, f"model.quantisation={quantisation}", *labels)
    folder = save(tmp_path / "small", kind, AutoModel if labels else AutoModelForCausalLM)
    model = load(config, folder)
    kinds = bitsandbytes.nn.Linear8bitLt | bitsandbytes.nn.Linear4bit
    layers = [m.base_layer if isinstance(m.base_layer, kinds) else None for m in adapted_layers(model)]
    layers = [layer for layer in layers if layer is not None]
    scales = sum(
        layer.weight.SCB.numel() if quantisation == "int8" else layer.weight.quant_state.absmax.numel()
        for layer in layers
    )
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    stored = sum(parameter.numel() * parameter.element_size() for parameter in frozen)
    facts = read_model_facts(folder)
    assert quantised_base_bytes(read_parameters(config, facts), facts, quantisation) == stored + 4 * scales
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    few_bits = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    assert few_bits == share_of_fp16 * 2 * weights


def adapted_layers(model: Any) -> list[Any]:
    return [module for name, module in model.named_modules() if "lora_A" in dict(module.named_children())]


@pytest.mark.parametrize("overrides", [(), (LORA, "lora={rank: 64}")], ids=title)
def test_the_states_of_adamw_in_8_bits_are_counted_exactly(
    recipe: Recipe, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """Tensors on both sides of 4096 elements: 96 * 48 embeddings are large, 48 * 48 attention is not."""
    changes = {"hidden_size": 48, "intermediate_size": 133}
    folder = save(tmp_path / "small", "llama", AutoModelForCausalLM, **changes)
    config = recipe.config("training.optimizer=adamw_8bit", *overrides)
    model = load(config, folder)
    optimizer = adamw(model, config.training, num_axes=torch.Tensor.dim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    storages = {state.untyped_storage().data_ptr(): state.untyped_storage().nbytes() for state in states}
    parameters = read_parameters(config, read_model_facts(folder))
    assert sum(storages.values()) == moments_8bit_bytes(parameters.trainable_elements)
    assert {state.dtype for state in states} == {torch.uint8, torch.float32}

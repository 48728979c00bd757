"""Models, adapters and tokenizers: loading, wrapping, saving. The only file that knows peft and bitsandbytes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from trainer.config.errors import ConfigError
from trainer.config.freezing import frozen_names
from trainer.config.module_names import HEADS, LABEL_HEADS, TOKEN_EMBEDDINGS
from trainer.config.plan import Plan
from trainer.config.schema import LoraSection, Objective, Precision, Quantisation, RunConfig
from trainer.data.tokenize import load_tokenizer

ADAPTER_WEIGHTS = "adapter_model.safetensors"
COMPUTE_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO_CLASSES: dict[Objective, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
}
LARGEST_FILE = "2GB"
"""Weights beyond it go into a further file."""

TASK_TYPES: dict[Objective, str] = {"causal_lm": "CAUSAL_LM", "classification": "SEQ_CLS"}


def load_model(plan: Plan, device: torch.device) -> PreTrainedModel | PeftModel:
    """The model of a plan, with fresh adapters where `method: lora`; a quantised base is put on `device` at once.

    Raises:
        ConfigError: transformers does not know the architecture, or cannot load the weights.
    """
    config = plan.config
    model, fresh = load_base(
        plan.model_folder,
        objective=config.objective,
        labels=config.labels,
        attention=config.model.attention,
        dtype=base_dtype(config),
        **quantised_loading(config.model.quantisation, device, COMPUTE_DTYPES[config.training.precision]),
    )
    if plan.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.method == "full":
        for name in frozen_names((name for name, _ in model.named_parameters()), config.freeze):
            model.get_parameter(name).requires_grad_(False)
        return model
    if plan.activation_checkpointing or config.model.quantisation != "none":
        model.enable_input_require_grads()  # the input of the first checkpoint comes from frozen embeddings
    adapted = get_peft_model(model, lora_config(config.lora_or_default, model, objective=config.objective, fresh=fresh))
    # peft widens adapters to fp32, but not what is trained in full, on which AdamW in fp16 divides by zero. DeepSpeed
    # keeps fp32 copies of its own, and wants what it partitions in one width.
    width = COMPUTE_DTYPES[config.training.precision] if plan.zero_stage else torch.float32
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(width)
    return adapted


def base_dtype(config: RunConfig) -> torch.dtype:
    """Weights that no optimizer steps on need no more bits than the computation; a quantised base keeps fp32 norms."""
    frozen = config.method == "lora" and config.model.quantisation == "none"
    return COMPUTE_DTYPES[config.training.precision] if frozen else torch.float32


def lora_config(lora: LoraSection, model: PreTrainedModel, *, objective: Objective, fresh: list[str]) -> LoraConfig:
    """peft's form of the adapters. A classification head, and what else is fresh, is trained in full beside them.

    Raises:
        ConfigError: a module to train in full does not exist.
    """
    modules = {name for name, _ in model.named_modules()}
    for name in lora.train_in_full:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            raise ConfigError(f"lora.train_in_full: found {name!r}, but the model has no such module.")
    heads = {name for name in modules if name.split(".")[-1] in LABEL_HEADS} if objective == "classification" else set()
    heads |= {name for name in fresh if not any(name.startswith(f"{head}.") for head in heads)}
    tied = model.config.tie_word_embeddings and any(
        name.split(".")[-1] in (*TOKEN_EMBEDDINGS, "lm_head") for name in lora.train_in_full
    )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,  # type: ignore[arg-type]  # peft takes floats
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilised,
        use_dora=lora.dora,
        target_modules=lora.targets if lora.targets == "all-linear" else list(lora.targets),
        exclude_modules=sorted(heads) or None,
        modules_to_save=[*lora.train_in_full, *sorted(heads)] or None,
        ensure_weight_tying=tied,
        task_type=TASK_TYPES[objective],
    )


def quantised_loading(quantisation: Quantisation, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers needs to load a base in few bits and to compute with it in `dtype`. Heads stay in fp32."""
    common = {"llm_int8_skip_modules": [*HEADS, "pooler.dense"]}  # matched at the end of a module's path
    place = {"": device.index if device.type == "cuda" else device.type}
    match quantisation:
        case "none":
            return {}
        case "int8":
            return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, **common), "device_map": place}
        case "int4":
            settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype, **common}
            return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **settings), "device_map": place}


def load_base(
    folder: str | Path,
    *,
    attention: str,
    objective: Objective = "causal_lm",
    labels: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    **placement: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """A model from local safetensors; remote code is never run.

    Returns:
        The model, and the names of its modules that the files hold no weights for: a fresh head.

    Raises:
        ConfigError: transformers does not know the architecture, or cannot load the weights, or weights other than
            a classification head are missing.
    """
    classes = {"num_labels": len(labels), "id2label": dict(enumerate(labels))} if labels else {}
    classes |= {"label2id": {label: index for index, label in enumerate(labels)}} if labels else {}
    try:
        model, loading = AUTO_CLASSES[objective].from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **classes,
            **placement,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.path: {folder}: transformers cannot load it ({reason}).") from None
    missing = sorted(loading["missing_keys"])
    foreign = [name for name in missing if not set(name.split(".")) & set(HEADS)]
    if foreign or (missing and objective == "causal_lm"):
        raise ConfigError(f"model.path: {folder}: weights are missing ({', '.join((foreign or missing)[:3])}).")
    if objective == "classification":
        model.config.use_cache = False
        if model.config.pad_token_id is None:  # decoders read the label off the last token that is not a pad
            model.config.pad_token_id = load_tokenizer(folder).pad_token_id
    return model, sorted({name.rpartition(".")[0] for name in missing})


def with_small_adapter(model: PreTrainedModel, *, rank: int) -> PeftModel:
    """A model with a fresh adapter on every linear layer, which is all that can be trained."""
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


@contextmanager
def base_weights(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, the model computes as it did before training: adapters are off."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
    else:
        yield


def frozen_base(model: torch.nn.Module) -> set[str]:
    """Names of the base weights under adapters: checkpoints leave them out. Empty without adapters."""
    if not isinstance(model, PeftModel):
        return set()
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def tied_names(model: torch.nn.Module) -> set[str]:
    """Names of weights that are another one under a second name: files hold them once."""
    return set(model.all_tied_weights_keys) if isinstance(model, PreTrainedModel) else set()


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; under ZeRO-3 call it before the engine partitions them."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def save_weights(model: PreTrainedModel | PeftModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write gathered weights in the field's formats: a transformers folder, or a peft adapter folder. Empties `state`.

    A file is serialised in memory: small ones keep the peak at one model and one file.
    """
    model.save_pretrained(str(folder), state_dict=state, max_shard_size=LARGEST_FILE)


def load_weights(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Read back what `save_weights` wrote, into a model of the same shape.

    Raises:
        ConfigError: tensors are missing or do not belong to this model.
    """
    state = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    result: Any
    if isinstance(model, PeftModel):
        result = set_peft_model_state_dict(model, state)
        added = (".lora_", ".modules_to_save.")
        expected = {
            name for name in result.missing_keys if any(part in name for part in added)
        }  # the base is elsewhere
    else:
        result = model.load_state_dict(state, strict=False)
        model.tie_weights()
        expected = set(result.missing_keys) - set(model.all_tied_weights_keys)
    if expected or result.unexpected_keys or not state:
        raise ConfigError(
            f"{folder}: these weights do not belong to the model: missing {sorted(expected)[:3]}, "
            f"unexpected {list(result.unexpected_keys)[:3]}."
        )


def load_trained(plan: Plan, weights_folder: Path, *, merge: bool) -> Any:
    """A trained model for use, in fp32: base with its adapter (merged into the base or not), or the full weights."""
    settings: dict[str, Any] = {"attention": plan.config.model.attention, "objective": plan.config.objective}
    if not (weights_folder / ADAPTER_WEIGHTS).exists():
        return load_base(weights_folder, **settings)[0]
    base, _ = load_base(plan.model_folder, labels=plan.config.labels, **settings)
    model = PeftModel.from_pretrained(base, str(weights_folder))
    return model.merge_and_unload(safe_merge=True) if merge else model

"""Models, adapters and tokenizers: loading, wrapping, saving. The only file that knows peft and bitsandbytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trainer.config.errors import ConfigError
from trainer.config.freezing import frozen_names
from trainer.config.plan import Plan
from trainer.config.schema import Quantisation

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a model folder. A missing pad token is replaced by the end-of-text token: pads carry no loss.

    Raises:
        ConfigError: the folder holds no tokenizer that transformers can read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.path: {folder}: no tokenizer that transformers can read ({reason}).") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(plan: Plan, device: torch.device) -> PreTrainedModel | PeftModel:
    """The model of a plan, with fresh adapters where `method: lora`; a quantised base is put on `device` at once.

    Raises:
        ConfigError: transformers does not know the architecture, or cannot load the weights.
    """
    config = plan.config
    placement = quantised_loading(config.model.quantisation, device)
    model = load_base(plan.model_folder, attention=config.model.attention, **placement)
    if config.training.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.method == "full":
        for name in frozen_names((name for name, _ in model.named_parameters()), config.freeze):
            model.get_parameter(name).requires_grad_(False)
        return model
    if config.training.activation_checkpointing:
        model.enable_input_require_grads()
    lora = config.lora_or_default
    targets = lora.targets if lora.targets == "all-linear" else list(lora.targets)
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,  # type: ignore[arg-type]  # peft takes floats
            lora_dropout=lora.dropout,
            use_rslora=lora.rank_stabilised,
            use_dora=lora.dora,
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
    )


def quantised_loading(quantisation: Quantisation, device: torch.device) -> dict[str, Any]:
    """What transformers needs to load a base in few bits. The output head stays in fp32."""
    common = {"llm_int8_skip_modules": ["lm_head"]}
    place = {"": device.index if device.type == "cuda" else device.type}
    match quantisation:
        case "none":
            return {}
        case "int8":
            return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, **common), "device_map": place}
        case "int4":
            settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32, **common}
            return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **settings), "device_map": place}


def load_base(folder: str | Path, *, attention: str, **placement: Any) -> PreTrainedModel:
    """A causal language model in fp32 from local safetensors; remote code is never run.

    Raises:
        ConfigError: transformers does not know the architecture, or cannot load the weights.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            **placement,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.path: {folder}: transformers cannot load it ({reason}).") from None


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


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; under ZeRO-3 call it before the engine partitions them."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def save_weights(model: PreTrainedModel | PeftModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write gathered weights in the field's formats: a transformers folder, or a peft adapter folder."""
    model.save_pretrained(str(folder), state_dict=state)


def load_weights(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Read back what `save_weights` wrote, into a model of the same shape.

    Raises:
        ConfigError: tensors are missing or do not belong to this model.
    """
    state = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    result: Any
    if isinstance(model, PeftModel):
        result = set_peft_model_state_dict(model, state)
        expected = {name for name in result.missing_keys if ".lora_" in name}  # the base is not in an adapter folder
    else:
        result = model.load_state_dict(state, strict=False)
        model.tie_weights()
        expected = set(result.missing_keys) - set(model.all_tied_weights_keys)
    if expected or result.unexpected_keys or not state:
        raise ConfigError(
            f"{folder}: these weights do not belong to the model: missing {sorted(expected)[:3]}, "
            f"unexpected {list(result.unexpected_keys)[:3]}."
        )


def load_trained(base_folder: str | Path, weights_folder: Path, *, attention: str, merge: bool) -> Any:
    """A trained model for use: base with its adapter (merged into the base or not), or the full weights."""
    if not (weights_folder / ADAPTER_WEIGHTS).exists():
        return load_base(weights_folder, attention=attention)
    model = PeftModel.from_pretrained(load_base(base_folder, attention=attention), str(weights_folder))
    return model.merge_and_unload(safe_merge=True) if merge else model

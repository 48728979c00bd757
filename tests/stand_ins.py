"""Tiny models with random weights, one for each architecture that a test needs, beside the demo's tokenizer.

And models of any size without weights, for plans.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from launch.demo import prepare_demo
from launch.machine import this_machine

WIDTH, LAYERS, HEADS, CONTEXT_TOKENS = 64, 2, 4, 512


def stand_in(folder: Path, architecture: str) -> Path:
    """A model folder: config.json, random weights, tokenizer. Encoders come without a head, as pre-trained ones do."""
    machine = this_machine()
    prepare_demo("glassllm-en", machine=machine, notify=print)
    tokenizer = AutoTokenizer.from_pretrained(machine.cache_folder / "demo/models/glassllm-en")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    model = build(
        architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build(architecture: str, **tokens: Any) -> PreTrainedModel:
    """A model of WIDTH and LAYERS, without dropout: its masks would differ between layouts."""
    size = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    rotary = {**size, "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": CONTEXT_TOKENS}
    encoder = {**size, "intermediate_size": 128, "max_position_embeddings": CONTEXT_TOKENS}
    encoder |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    match architecture:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**rotary, **tokens))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**rotary, **tokens, tie_word_embeddings=True))
        case "gpt2":
            gpt2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT_TOKENS}
            gpt2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return GPT2LMHeadModel(GPT2Config(**gpt2, **tokens))
        case "opt":
            opt = {"ffn_dim": 128, "word_embed_proj_dim": WIDTH, "max_position_embeddings": CONTEXT_TOKENS}
            opt |= {"dropout": 0.0}
            return OPTForCausalLM(OPTConfig(**size, **opt, **tokens))
        case "bert":
            return BertModel(BertConfig(**encoder, vocab_size=tokens["vocab_size"]))
        case "distilbert":
            distil = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 128}
            distil |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
            return DistilBertModel(DistilBertConfig(**distil, vocab_size=tokens["vocab_size"]))
    raise ValueError(architecture)


def without_weights(folder: Path, build_model: Callable[[], PreTrainedModel]) -> Path:
    """A model folder as a plan reads it: config.json, and a safetensors file whose weights are a hole."""
    with torch.device("meta"):
        model = build_model()
    model.config.save_pretrained(folder)
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        begin, end = end, end + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder

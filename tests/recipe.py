"""A tiny recipe on a machine that is made up: what the tests of configuration, plan and golden files share.

Imports no torch, so that these tests stay fast.
"""

import json
import math
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from launch.machine import Machine
from launch.plan import make_plan
from trainer.config.load import load_config
from trainer.config.plan import Plan
from trainer.config.schema import RunConfig

GIB = 2**30

TINY_SHAPES = {
    "model.embed_tokens.weight": (32, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    "model.norm.weight": (8,),
}
"""256 + 64 + 8 + 32 + 32 + 64 + 128 + 128 + 8 = 720 parameters; the head is tied, so it is not stored."""

RECIPE = """\
run:
  folder: {folder}/run
model:
  path: {folder}/model
data:
  sequence_length_tokens: 16
  tasks:
    ner: {{train: "{folder}/train.jsonl", heldout: "{folder}/heldout.jsonl", prompt: "{{{{ a }}}}", response: " b"}}
training:
  num_steps: 10
  examples_per_step: 8
  learning_rate: 1e-3
"""


def write_model(folder: Path, shapes: dict[str, tuple[int, ...]], *, context_tokens: int) -> Path:
    """A model folder as `make_plan` reads it: config.json and one safetensors file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context_tokens}))
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def write_large_model(folder: Path) -> Path:
    """A model folder of 2^26 + 16 * (2^22 + 2 * 2^24) = 671,088,640 parameters whose weights are a hole in a file."""
    shapes = {"model.embed_tokens.weight": (32768, 2048)}
    for layer in range(16):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (2048, 2048)
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (8192, 2048)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (2048, 8192)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    geometry = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16}
    geometry |= {"intermediate_size": 8192, "vocab_size": 32768, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 2048, **geometry}))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


class Recipe:
    """One task on a model of 720 parameters and 64 tokens of context, with every file in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_parameters = sum(math.prod(shape) for shape in TINY_SHAPES.values())
        self.model = write_model(folder / "model", TINY_SHAPES, context_tokens=64)
        for name in ("train", "heldout"):
            (folder / f"{name}.jsonl").write_text('{"a": "x"}\n')
        self.path = folder / "recipe.yaml"
        self.path.write_text(RECIPE.format(folder=folder))

    def write_config(self, **geometry: object) -> None:
        """What config.json says of the model's architecture beside its context."""
        (self.model / "config.json").write_text(json.dumps({"max_position_embeddings": 64, **geometry}))

    def config(self, *overrides: str) -> RunConfig:
        """The recipe with overrides."""
        return load_config(self.path, overrides=overrides)

    def machine(self, *gpu_memory_bytes: int, memory_bytes: int = 64 * GIB) -> Machine:
        """A machine of 8 cores with these GPUs."""
        return Machine(
            num_cores=8,
            memory_bytes=memory_bytes,
            gpu_memory_bytes=gpu_memory_bytes,
            cache_folder=self.folder / "cache",
            hub_cache_folder=self.folder / "hub",
            host="node1",
        )

    def plan(self, *overrides: str, machine: Machine | None = None) -> Plan:
        """The plan on `machine`, or on one without GPU."""
        return make_plan(self.config(*overrides), machine=machine or self.machine())

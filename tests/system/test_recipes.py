"""The configurations in configs/, which users start from.

Each is planned at the true size of its model, on the GPUs that its header names; and each recipe takes two steps on a
tiny model of the same architecture, beside one process in fp32.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
)

from launch.machine import Machine
from launch.plan import make_plan
from tests.demo_assets import needs_demo_packages
from tests.fleet import Case, run_fleet
from tests.harness import REPOSITORY
from tests.recipe import GIB
from tests.stand_ins import stand_in, without_weights
from trainer.config.load import load_config
from trainer.config.plan import Plan
from trainer.config.schema import Precision, Strategy

CONFIGS = REPOSITORY / "configs"
NO_RUNS = {"demo_suite", "demo_tasks"}
GIGABYTE = 10**9
GIGABYTES_TOLERANCE = 1e-3
"""Relative, on numbers of four digits."""

DECODER_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "tie_word_embeddings"),
)
DECODERS: dict[str, tuple[Any, ...]] = {
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 4864, 24, 14, 2, 151936, 32768, True),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 1536, 8960, 28, 12, 2, 151936, 131072, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 18944, 28, 28, 4, 152064, 131072, False),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 3584, 18944, 28, 28, 4, 152064, 32768, False),
    "Qwen/Qwen2.5-72B-Instruct": ("qwen2", 8192, 29568, 80, 64, 8, 152064, 32768, False),
    "cache/demo/models/glassllm-en": ("llama", 128, 341, 4, 4, 2, 1024, 128, True),
    "cache/demo/models/smollm2": ("llama", 576, 1536, 30, 9, 3, 49152, 8192, True),
}
"""Published sizes of Llama and its relatives, by model.path: the family, then DECODER_SIZES."""

OPT = {"hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32, "num_attention_heads": 32}


def build(model: str) -> PreTrainedModel:
    """A model of its published size, on the device in force."""
    if model in DECODERS:
        family, *sizes = DECODERS[model]
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**dict(zip(DECODER_SIZES, sizes, strict=True))))
    match model:
        case "models/opt-6.7b":
            return AutoModelForCausalLM.from_config(CONFIG_MAPPING["opt"](**OPT, word_embed_proj_dim=4096))
        case "distilbert/distilbert-base-uncased":
            return AutoModelForMaskedLM.from_config(CONFIG_MAPPING["distilbert"]())
        case "openai-community/gpt2":
            return AutoModel.from_config(CONFIG_MAPPING["gpt2"]())
    raise ValueError(model)


@dataclass(frozen=True)
class Meant:
    """What a configuration is meant to be."""

    strategy: Strategy
    num_ranks: int
    precision: Precision
    num_base: int
    """Published number of parameters, with a fresh head."""

    num_trained: int
    weights_gb: float
    """On one device."""

    offloaded_gb: float = 0
    stand_in: str = "qwen2"
    """Architecture of the tiny model."""


QWEN_7B, QWEN_72B = 7_615_616_512, 72_706_203_648
# rank 16 * (in + out): of q and o, of k and v, of gate and up and down
LORA_7B = 28 * 16 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
LORA_72B = 80 * 16 * (2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 29568))
LORA_SMOLLM2 = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
LORA_OPT = 32 * 16 * 2 * (4096 + 4096)  # q and v
# 12 layers: q and its bias, k and v with theirs, o, MLP, two norms. Then the last norm.
LATE_LAYERS = 12 * (896 * 897 + 2 * 128 * 897 + 896 * 896 + 3 * 896 * 4864 + 2 * 896) + 896
CLASSIFIER = 66_362_880 + 768 * 768 + 768 + 2 * 768 + 2

RECIPES = {
    # 2 * 7.6156 / 8
    "full_zero3": Meant("zero3", 8, "bf16", QWEN_7B, QWEN_7B, 1.904),
    # 2 * 1.5437; 12 * 1.5437 / 2
    "full_zero2_offload": Meant("zero2", 2, "bf16", 1_543_714_304, 1_543_714_304, 3.087, offloaded_gb=9.262),
    # 2 * (7.6156 + 0.0404)
    "lora_zero2": Meant("zero2", 4, "bf16", QWEN_7B, LORA_7B, 15.31),
    # 2 * (72.706 + 0.2105) / 8
    "lora_zero3": Meant("zero3", 8, "bf16", QWEN_72B, LORA_72B, 18.23),
    # A byte each: 32 * (4 * 4096^2 + 2 * 4096 * 16384) = 6.4425e9. In fp32: embeddings 4 * (50272 + 2050) * 4096 =
    # 0.8572, adapters 4 * 0.0084 = 0.0336; scales and biases 32 * 8 * (5 * 4096 + 16384), norms 65 * 8 * 4096: 0.0116.
    "int8_single_gpu": Meant("single", 1, "bf16", 6_658_473_984, LORA_OPT, 7.345, stand_in="opt"),
    # 4 * 0.06696
    "classify_sentiment": Meant("single", 1, "fp32", CLASSIFIER, CLASSIFIER, 0.2678, stand_in="distilbert"),
    # 4 * 0.12444
    "instruct_sentiment": Meant("single", 1, "fp32", 124_439_808, 124_439_808, 0.4978, stand_in="gpt2"),
    # 4 * 0.49403
    "freeze_early_layers": Meant("single", 1, "bf16", 494_032_768, LATE_LAYERS, 1.976),
}
DEMOS = {
    "demo": Meant("zero2", 2, "fp32", 852_608, 852_608, 0.003410),
    "multitask": Meant("zero2", 2, "fp32", 852_608, 852_608, 0.003410),
    "continual": Meant("single", 1, "fp32", 852_608, 852_608, 0.003410),
    "continual_replay": Meant("single", 1, "fp32", 852_608, 852_608, 0.003410),
    "demo_smollm2": Meant("zero2", 2, "fp32", 134_515_008, LORA_SMOLLM2, 0.5576),  # 4 * (0.134515 + 0.004884)
}
"""Planned here; other tests train them."""

CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]\n"
TINY = (
    *("layout.device=cpu", "data.sequence_length_tokens=128", "data.on_overlength=drop"),
    *("training.num_steps=2", "training.warmup_steps=1"),
    *("training.examples_per_step=8", "training.examples_per_device=2"),
)
ONE_PROCESS_IN_FP32 = (
    *("layout.strategy=single", "layout.processes=1", "layout.offload=none"),
    *("model.quantisation=none", "training.precision=fp32"),
)
# Relative to one process in fp32: the first loss; both losses and gradient norms.
TOLERANCES = {"fp32": (1e-5, 1e-5), "bf16": (1e-3, 1e-2)}


def gpus_of(header: str) -> list[int]:
    """Bytes of each GPU that a header names."""
    found = re.search(r"\bon\s(?:#\s)?(one|\d+) GPUs? of (\d+) GB", header)
    return [int(found[2]) * GIGABYTE] * int(found[1].replace("one", "1")) if found else []


def plan_at_true_size(name: str, folder: Path) -> Plan:
    """The plan of a configuration in a working folder with its data and its model, on the machine of its header."""
    path = folder / "configs" / f"{name}.yaml"
    path.parent.symlink_to(CONFIGS)
    config = load_config(path, variables={"RETAIN_CACHE": "cache"})
    for task in config.data.tasks.values():
        for file in (folder / source for source in (task.train, task.heldout) if source is not None):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    model = config.model.path
    place = folder / model
    if not model.startswith(("cache/", "models/")):
        repository = folder / "hub" / f"models--{model.replace('/', '--')}"
        place = repository / "snapshots" / "1a2b"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("1a2b")
    without_weights(place, lambda: build(model))
    machine = Machine(
        num_cores=64,
        memory_bytes=512 * GIB,
        gpu_memory_bytes=tuple(gpus_of(path.read_text(encoding="utf-8"))),
        cache_folder=folder / "cache",
        hub_cache_folder=folder / "hub",
        host="node1",
    )
    return make_plan(config, machine=machine)


def test_every_configuration_is_known() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*RECIPES, *DEMOS, *NO_RUNS}


@pytest.mark.parametrize("name", [*RECIPES, *DEMOS])
def test_a_configuration_fits_the_gpus_that_its_header_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, meant = plan_at_true_size(name, tmp_path), {**RECIPES, **DEMOS}[name]
    assert (plan.strategy, plan.world_size) == (meant.strategy, meant.num_ranks)
    assert plan.config.training.precision == meant.precision
    assert plan.device == ("cpu" if name in DEMOS else "cuda")
    memory = plan.memory
    assert memory.num_trainable_parameters == meant.num_trained
    assert memory.num_parameters == meant.num_base + (meant.num_trained if plan.config.method == "lora" else 0)
    gigabytes = [memory.weight_bytes / GIGABYTE, memory.offloaded_bytes / GIGABYTE]
    assert gigabytes == pytest.approx([meant.weights_gb, meant.offloaded_gb], rel=GIGABYTES_TOLERANCE)
    assert memory.activation_bytes is not None  # a known family: the whole step was weighed


def test_headers_name_gpus_in_words_and_across_lines() -> None:
    assert gpus_of("# A run on 2 GPUs of 24 GB.\n") == [24 * GIGABYTE] * 2
    assert gpus_of("# A run,\n# on one GPU of 8 GB, or on\n# a CPU.\n") == [8 * GIGABYTE]
    assert gpus_of("# on two ranks\n") == []


def _smaller(path: Path) -> list[str]:
    """Overrides where a recipe is too large for a stand-in of two layers, or would take another step on two ranks."""
    config = load_config(path, variables={"RETAIN_CACHE": "${RETAIN_CACHE}"})
    tasks = config.data.tasks.items()
    overrides = [f"data.tasks.{name}.train={task.heldout}" for name, task in tasks]  # 400 examples, not 10,000
    overrides += ["data.leakage=off", *(["freeze.first_layers=1"] if config.freeze else [])]
    return overrides + (["lora.dropout=0"] if config.lora else [])  # its masks differ between layouts


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Both steps of each recipe, and of `NAME in fp32`."""
    root = tmp_path_factory.mktemp("recipes")
    for architecture in {meant.stand_in for meant in RECIPES.values()}:
        stand_in(root / architecture, architecture)
    tokenizer = AutoTokenizer.from_pretrained(root / "qwen2")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(root / "qwen2")
    launches: dict[int, dict[str, Case]] = {1: {}, 2: {}}
    for name, meant in RECIPES.items():
        path, num_processes = CONFIGS / f"{name}.yaml", min(2, meant.num_ranks)
        own = [*TINY, f"model.path={root / meant.stand_in}", f"layout.processes={num_processes}", *_smaller(path)]
        launches[num_processes][name] = Case(config=path, overrides=tuple(own))
        launches[1][f"{name} in fp32"] = Case(config=path, overrides=(*own, *ONE_PROCESS_IN_FP32))
    results: dict[str, dict[str, Any]] = {}
    for processes, cases in launches.items():
        folder = root / f"on_{processes}"
        folder.mkdir()
        results |= run_fleet(cases, folder, processes=processes)
    return results


def faults_of(name: str, trained: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with the two steps of a recipe."""
    errors = [trained[case]["error"] for case in (name, f"{name} in fp32") if "error" in trained[case]]
    if errors:
        return errors
    found, wanted = trained[name]["steps"], trained[f"{name} in fp32"]["steps"]
    if len(found) != 2 or not all(math.isfinite(number) for step in found for number in step):
        return [f"not two finite steps: {found}"]
    off = [[abs(x - y) / abs(y) for x, y in zip(*steps, strict=True)] for steps in zip(found, wanted, strict=True)]
    first, every = TOLERANCES[RECIPES[name].precision]
    faults = [f"first loss off by {off[0][0]:.1e}"] if off[0][0] > first else []
    return faults + ([f"a loss or norm off by {max(map(max, off)):.1e}"] if max(map(max, off)) > every else [])


@needs_demo_packages
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_the_steps_of_one_process_in_fp32(name: str, trained: dict[str, dict[str, Any]]) -> None:
    assert faults_of(name, trained) == []


@needs_demo_packages
def test_a_recipe_that_trains_wrongly_is_seen(trained: dict[str, dict[str, Any]]) -> None:
    (loss, norm), second = trained["full_zero3"]["steps"]
    for wrong in (
        [[loss * 1.01, norm], second],
        [[loss, norm * 1.1], second],
        [[loss, norm]],
        [[loss, norm], [math.nan] * 2],
    ):
        assert faults_of("full_zero3", {**trained, "full_zero3": {"steps": wrong}}) != []

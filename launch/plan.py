"""RunConfig and machine in, Plan out. Writes nothing; needs no torch."""

import glob
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Literal

from launch.commands import worker_argv
from launch.machine import Machine
from launch.memory import examples_per_evaluation_batch
from launch.model_facts import ModelFacts, read_model_facts
from launch.strategy import choose_layout
from trainer.config.data_schema import HubSource, LmEvalSource
from trainer.config.errors import ConfigError
from trainer.config.plan import Plan
from trainer.config.run_folder import RunFolder
from trainer.config.schema import RunConfig

_SOURCE_FOLDER = Path(__file__).resolve().parent.parent


def make_plan(config: RunConfig, *, machine: Machine) -> Plan:
    """Decide everything about a run.

    Raises:
        ConfigError: a file is missing, the model is unknown, a length or a batch does not fit, the run folder is taken.
    """
    folder = RunFolder(Path(config.run.folder).absolute())
    if folder.has_started:
        raise ConfigError(
            f"run.folder: {folder.path} holds an earlier run. Choose another run.folder, or go on with it: "
            f"retain train --resume {config.run.folder}"
        )
    if strangers := folder.foreign_entries():
        raise ConfigError(
            f"run.folder: {folder.path} exists and holds other files ({', '.join(strangers[:3])}). Choose a new folder."
        )
    model_folder = find_model(config.model.path, machine=machine)
    facts = read_model_facts(model_folder)
    _check_files(config)
    _check_context(config, facts)
    layout = choose_layout(config, machine=machine, facts=facts)
    return Plan(
        config=layout.config,
        decisions=layout.decisions,
        strategy=layout.strategy,
        device=layout.device,
        world_size=layout.world_size,
        examples_per_microbatch=layout.examples_per_microbatch,
        microbatches_per_step=layout.microbatches_per_step,
        activation_checkpointing=layout.activation_checkpointing,
        evaluation_examples_per_batch=examples_per_evaluation_batch(layout.config, facts),
        run_folder=str(folder.path),
        model_folder=str(model_folder),
        cache_folder=str(machine.cache_folder),
        argv=worker_argv(folder.plan, strategy=layout.strategy, world_size=layout.world_size),
        environment=rank_environment(
            machine,
            device=layout.device,
            world_size=layout.world_size,
            threads=layout.config.layout.threads_per_process,
        ),
        memory=layout.memory,
        config_sha256=config_hash(layout.config, cache_folder=machine.cache_folder),
        code_version=code_version(),
    )


def find_model(name: str, *, machine: Machine) -> Path:
    """The folder of a model: a local one, or a hub model that is already in the Hugging Face cache.

    Raises:
        ConfigError: neither exists. Nothing is downloaded: compute nodes rarely can.
    """
    local = Path(name)
    if local.is_dir():
        return local.absolute()
    cached = machine.hub_cache_folder / f"models--{name.replace('/', '--')}"
    try:
        revision = (cached / "refs" / "main").read_text(encoding="utf-8").strip()
        return (cached / "snapshots" / revision).resolve(strict=True)
    except OSError:
        pass
    demo = str(machine.cache_folder / "demo")
    advice = (
        "Make it with: retain demo --prepare-only"
        if str(local.absolute()).startswith(demo)
        else f"Give a model folder, or fetch it first: hf download {name}"
    )
    raise ConfigError(
        f"model.path: unknown model {name!r}: no such folder, and not in the cache {machine.hub_cache_folder}. {advice}"
    )


def _check_files(config: RunConfig) -> None:
    sources = {f"data.tasks.{name}.train": task.train for name, task in config.data.tasks.items()}
    sources |= {f"data.tasks.{name}.heldout": task.heldout for name, task in config.data.tasks.items() if task.heldout}
    if config.evaluation.suite is not None:
        sources["evaluation.suite"] = config.evaluation.suite
    if config.evaluation.reference_run is not None:
        sources["evaluation.reference_run"] = f"{config.evaluation.reference_run}/report.json"
    for key, source in sources.items():
        if isinstance(source, LmEvalSource):
            raise ConfigError(
                f"{key}: found a task of lm-eval ({source.lm_eval}), which is for measuring alone. Name it in a suite "
                "(evaluation.suite: tasks.NAME.data), and give files or a hub data set here."
            )
        paths = () if isinstance(source, HubSource) else (source,) if isinstance(source, str) else source
        for path in paths:
            if not Path(path).exists() and not any(glob.iglob(path, recursive=True)):
                raise ConfigError(f"{key}: no such file: {path} (paths are relative to {Path.cwd()}).")


def _check_context(config: RunConfig, facts: ModelFacts) -> None:
    asked, limit = config.data.sequence_length_tokens, facts.context_tokens
    if limit is not None and asked > limit:
        raise ConfigError(
            f"data.sequence_length_tokens: found {asked}, but the context of {config.model.path} is {limit} tokens. "
            f"Set it to {limit} or less."
        )


def rank_environment(
    machine: Machine, *, device: str, world_size: int, threads: int | Literal["auto"] = "auto"
) -> dict[str, str]:
    """Variables of every process of `trainer`. Nothing is fetched from a hub while GPUs wait."""
    variables = {
        "OMP_NUM_THREADS": str(max(1, machine.num_cores // world_size) if threads == "auto" else threads),
        "TORCH_EXTENSIONS_DIR": str(machine.operator_folder),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    if device == "cpu":
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return variables


def config_hash(config: RunConfig, *, cache_folder: Path) -> str:
    """sha256 of the resolved configuration: two runs of one recipe share it, whatever their run and cache folders."""
    values = config.model_dump(mode="json")
    del values["run"]["folder"]
    text = json.dumps(values, sort_keys=True).replace(json.dumps(str(cache_folder))[1:-1], "${RETAIN_CACHE}")
    return hashlib.sha256(text.encode()).hexdigest()


def code_version() -> str:
    """Version of Retain and, in a checkout, the commit that HEAD names."""
    try:
        version = importlib.metadata.version("retain")
    except importlib.metadata.PackageNotFoundError:
        version = "uninstalled"
    git = _SOURCE_FOLDER / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        commit = head if not head.startswith("ref: ") else (git / head[5:]).read_text(encoding="utf-8").strip()
    except OSError:
        return version
    return f"{version}+{commit[:12]}"

"""Complete checkpoints or none: written under another name, flushed, renamed, and only then counted.

A checkpoint holds weights in the field's formats, optimizer state, the random
state of every rank, and the step, from which the data order follows.
"""

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from trainer.config.errors import ConfigError
from trainer.config.plan import Plan
from trainer.config.run_folder import RunFolder, write_json
from trainer.engine.protocol import Engine
from trainer.model import save_weights
from trainer.seeding import random_state, restore_random_state

WEIGHTS, ENGINE, RANDOM, STATE = "weights", "engine", "random", "state.json"


def save_checkpoint(engine: Engine, *, plan: Plan, folder: RunFolder, step: int) -> Path:
    """Collective: write the state after `step` optimizer steps, then remove what `keep_last` no longer covers."""
    final = folder.checkpoint(step)
    part = final.with_name(f".{final.name}.part")
    if engine.world.is_main:
        for unfinished in final.parent.glob(".step_*"):
            shutil.rmtree(unfinished)
        for name in (ENGINE, RANDOM):
            (part / name).mkdir(parents=True)
    engine.world.barrier()
    engine.save(part / ENGINE)
    _save_random_state(part / RANDOM, rank=engine.world.rank)
    weights = engine.gather_weights()
    if engine.world.is_main:
        save_weights(engine.model, weights, part / WEIGHTS)
        write_json(part / STATE, _state(plan, step))
    engine.world.barrier()
    if engine.world.is_main:
        _flush(part)
        _publish(part, final)
        for old in folder.complete_checkpoints()[: -plan.config.checkpoint.keep_last]:
            shutil.rmtree(folder.checkpoint(old))
    engine.world.barrier()
    return final


def check_checkpoint(path: Path, *, plan: Plan) -> int:
    """The step of a checkpoint that this plan can go on from.

    Raises:
        ConfigError: it is unreadable, or was written under another layout.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        step = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a complete checkpoint ({error}). Remove the folder to use an older one."
        ) from None
    now = _state(plan, step)
    different = [key for key in now if state.get(key) != now[key]]
    if different:
        key = different[0]
        raise ConfigError(
            f"{path}: {key}: the checkpoint was written with {state.get(key)!r}, "
            f"the plan of this run folder says {now[key]!r}. Restore the plan that it was started with."
        )
    missing = [name for name in _parts(plan) if not (path / name).exists()]
    if missing:
        raise ConfigError(f"{path}: damaged: {missing[0]} is missing. Remove the folder to use an older checkpoint.")
    return step


def load_state(engine: Engine, path: Path) -> None:
    """Collective: optimizer and random state of a checkpoint; weights come in `load_weights` or with the engine."""
    engine.load(path / ENGINE)
    tensors, texts = _random_files(path / RANDOM, engine.world.rank)
    restore_random_state({**load_file(tensors), **json.loads(texts.read_text(encoding="utf-8"))})


def _state(plan: Plan, step: int) -> dict[str, object]:
    return {
        "step": step,
        "world_size": plan.world_size,
        "strategy": plan.strategy,
        "examples_per_microbatch": plan.examples_per_microbatch,
        "config_sha256": plan.config_sha256,
    }


def _parts(plan: Plan) -> list[str]:
    """What a complete checkpoint holds, by path inside it."""
    random_files = [file for rank in range(plan.world_size) for file in _random_files(Path(RANDOM), rank)]
    return [WEIGHTS, ENGINE, *map(str, random_files)]


def _random_files(folder: Path, rank: int) -> tuple[Path, Path]:
    """(tensors, texts) of one rank's random state."""
    return folder / f"rank_{rank:05d}.safetensors", folder / f"rank_{rank:05d}.json"


def _publish(part: Path, final: Path) -> None:
    """Give a finished folder its name. One of that name is moved away first, and removed only afterwards."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        final.replace(old)
    part.replace(final)
    _flush_entry(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _save_random_state(folder: Path, *, rank: int) -> None:
    state = random_state()
    tensors, texts = _random_files(folder, rank)
    save_file({name: state[name] for name in ("torch", "cuda")}, tensors)
    write_json(texts, {name: state[name] for name in ("python", "numpy")})


def _flush(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _flush_entry(Path(root) / name)
        _flush_entry(Path(root))


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

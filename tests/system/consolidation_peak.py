"""A rank that loads a model under ZeRO-3 and writes its weights; says how far its memory rose, in models.

With the word `twice` a fault is planted: the gathered weights are copied once more.
"""

import ctypes
import json
import sys
from pathlib import Path

import psutil

import trainer.model
from trainer.config.plan import read_plan
from trainer.console import Screen
from trainer.distributed import end_rank, join_world
from trainer.model import save_weights
from trainer.worker import build_engine


def reset_peak() -> int:
    """Give back what is free and forget the highest memory so far; what is in use now, in bytes."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def peak() -> int:
    """Highest resident memory since, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def main(plan_path: Path, weights: Path, result: Path, *, twice: bool) -> None:
    trainer.model.LARGEST_FILE = "50MB"
    plan = read_plan(plan_path)
    world = join_world(plan)
    engine = build_engine(plan, world, None, Screen(sys.stdout, speaks=False))
    before = reset_peak()
    gathered = engine.gather_weights()
    copies = {name: tensor.clone() for name, tensor in gathered.items()} if twice else {}
    if world.is_main:
        save_weights(engine.model, gathered, weights)
        models = (peak() - before) / (4 * plan.memory.num_parameters)
        result.write_text(json.dumps({"models": models, "files": len(list(weights.glob("*.safetensors")))}))
    copies.clear()
    world.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), twice=sys.argv[4:] == ["twice"])
    end_rank(0)

"""The exact command lines, composed as data: lists of arguments, never strings to split."""

import sys
from pathlib import Path

from trainer.config.schema import Strategy


def worker_argv(plan_path: Path, *, strategy: Strategy, world_size: int) -> tuple[str, ...]:
    """The command that starts all ranks of one node.

    One rank is plain python; more go through torchrun with a rendezvous of its own on a free local port.
    """
    worker = ("-m", "trainer.worker", str(plan_path))
    if world_size == 1 and not strategy.startswith("zero"):
        return (sys.executable, *worker)
    return (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nnodes=1",
        f"--nproc-per-node={world_size}",
        "--max-restarts=0",
        *worker,
    )


def module_argv(module: str, *arguments: str) -> tuple[str, ...]:
    """A program of `trainer` that runs in one process, such as trainer.export."""
    return (sys.executable, "-m", module, *arguments)

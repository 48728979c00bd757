"""The ranks of a run: who they are and how they agree. The only file that talks to torch.distributed
and, in `trainer`, the only one that reads the environment.

Every method marked "Collective" must be entered by all ranks in the same order.
"""

import logging
import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from trainer.config.plan import Plan


@dataclass(frozen=True, slots=True)
class World:
    """One rank's view of all ranks."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes and speaks."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Collective: elementwise sum over ranks, on every rank."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def any(self, flag: bool) -> bool:
        """Collective: True on every rank where any rank says True."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item() > 0)

    def gather_objects(self, value: Any) -> list[Any]:
        """Collective: the value of each rank, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Collective: wait until every rank is here."""
        if self.size > 1:
            self.sum(torch.zeros(1, device=self.device))


def place_of_rank() -> tuple[int, int, int]:
    """(rank, world size, local rank) as the launcher set them; (0, 1, 0) without one."""
    return (
        int(os.environ.get("RANK", "0")),
        int(os.environ.get("WORLD_SIZE", "1")),
        int(os.environ.get("LOCAL_RANK", "0")),
    )


def join_world(plan: Plan) -> World:
    """Collective: join the process group that the launcher prepared.

    Raises:
        RuntimeError: the launcher started another number of ranks than the plan says.
    """
    rank, size, local_rank = place_of_rank()
    if size != plan.world_size:
        raise RuntimeError(f"the launcher started {size} ranks, the plan says {plan.world_size}")
    device = torch.device("cuda", local_rank) if plan.device == "cuda" else torch.device("cpu")
    if plan.device == "cuda":
        torch.cuda.set_device(device)
    if size > 1 or plan.zero_stage:
        dist.init_process_group(
            "nccl" if plan.device == "cuda" else "gloo",
            timeout=timedelta(seconds=plan.config.layout.collective_timeout_seconds),
            rank=rank,
            world_size=size,
            device_id=device if plan.device == "cuda" else None,
        )
    return World(rank, size, local_rank, device)


def leave_world() -> None:
    """Close the process group. Not collective: a rank that failed must not wait for the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end_rank(code: int) -> NoReturn:
    """End this process with an exit code, everything said, without taking the interpreter apart.

    Gloo's threads hold the tensors of their last collectives until the group itself is gone, and
    `destroy_process_group` leaves it alive where a library (DeepSpeed) still refers to it. Such a thread
    that lets go of a tensor while Python shuts down aborts the process: a run that is done would look crashed.
    """
    leave_world()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def host_name() -> str:
    """Name of this host, for messages."""
    return socket.gethostname()

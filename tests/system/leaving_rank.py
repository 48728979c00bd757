"""Two ranks that end while a thread of torch still holds tensors; with `plainly`, as any program ends."""

import sys

import torch
import torch.distributed as dist

from trainer.distributed import end_rank, leave_world

NUM_COLLECTIVES = 20

if __name__ == "__main__":
    dist.init_process_group("gloo")
    group = dist.group.WORLD  # held to the end, as DeepSpeed holds it
    sent = torch.ones(2_000_000)
    received = [torch.empty_like(sent) for _ in range(2)]
    for _ in range(NUM_COLLECTIVES):
        group.allgather([[*received]], [sent])
    dist.barrier()
    print("all is done", flush=True)
    if sys.argv[1:] != ["plainly"]:
        end_rank(0)
    leave_world()
    del sent, received

"""The worker with a planted fault: from step 3 on, the loss is not a number on the last rank."""

import sys

import trainer.loop
from trainer.distributed import place_of_rank
from trainer.loss import target_nll
from trainer.worker import main

rank, size, _ = place_of_rank()
calls = 0


def sometimes_nan(logits_BTV, targets_BT):
    global calls
    calls += 1
    nll_B, tokens_B = target_nll(logits_BTV, targets_BT)
    return (nll_B * float("nan") if calls > 4 and rank == size - 1 else nll_B), tokens_B  # 2 micro-batches a step


if __name__ == "__main__":
    trainer.loop.target_nll = sometimes_nan
    sys.exit(main())

"""The worker with a planted fault: from step 3 on, the loss is not a number on the last rank."""

import trainer.loop
from trainer.distributed import end_rank, place_of_rank
from trainer.loss import target_nll
from trainer.worker import main

rank, size, _ = place_of_rank()
calls = 0


def sometimes_nan(logits_BTV, targets_BT):
    global calls
    calls += 1
    nll_BT, supervised_BT = target_nll(logits_BTV, targets_BT)
    is_last_rank = rank == size - 1
    return (nll_BT * float("nan") if calls > 4 and is_last_rank else nll_BT), supervised_BT  # 2 micro-batches a step


if __name__ == "__main__":
    trainer.loop.target_nll = sometimes_nan
    end_rank(main())

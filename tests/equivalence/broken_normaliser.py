"""The worker with a planted fault: each rank divides by its own tokens, as a mean over means does."""

import sys

import trainer.loop
from trainer.loss import count_target_tokens
from trainer.worker import main


def tokens_of_this_rank_only(world, labels_by_microbatch):
    count = sum(count_target_tokens(labels_BT) for labels_BT in labels_by_microbatch)
    return (count * world.size).double()


if __name__ == "__main__":
    trainer.loop.global_target_tokens = tokens_of_this_rank_only
    sys.exit(main())

"""The worker with a planted fault: finite losses whose gradients overflow. Says whether a weight was touched."""

import sys
from pathlib import Path

import torch

import trainer.loop
import trainer.worker
from trainer.distributed import end_rank
from trainer.loss import normalised_loss

LARGE = 3e38


def overflowing_loss(nll_B, **options):
    return normalised_loss(nll_B, **options) * LARGE


def main() -> int:
    build_engine, kept = trainer.worker.build_engine, {}

    def build_and_keep(*arguments):
        engine = build_engine(*arguments)
        kept["engine"] = engine
        kept["before"] = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
        return engine

    trainer.loop.normalised_loss = overflowing_loss
    trainer.worker.build_engine = build_and_keep
    code = trainer.worker.main()
    after = dict(kept["engine"].model.named_parameters())
    same = all(torch.equal(before, after[name]) for name, before in kept["before"].items())
    Path(sys.argv[1]).with_name("weights.txt").write_text("untouched" if same else "TOUCHED", encoding="utf-8")
    return code


if __name__ == "__main__":
    end_rank(main())

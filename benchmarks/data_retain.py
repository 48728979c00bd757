"""One measurement of Retain's data preparation, in a process of its own; benchmarks/data.py starts it.

Everything is what `retain train` runs: the plan, `read_data`, and the micro-batches of each step. Imports and the plan
come before the clock starts. One JSON object on the last line of stdout says what was measured.
"""

import json
import os
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.meter import Meter
from launch.machine import this_machine
from launch.plan import make_plan
from trainer.config.load import load_config
from trainer.config.plan import Plan
from trainer.console import Screen
from trainer.data.token_store import EXAMPLES, LENGTHS, ROWS_PER_BATCH, SUMMARY, TokenWriter, as_record_batch
from trainer.data.tokenize import load_tokenizer
from trainer.distributed import World
from trainer.run_data import RunData, read_data

ALONE = World(0, 1, 0, torch.device("cpu"))
SEED = 17
PHASES = {"evaluation": "held out", "tokens": "tokens", "orders": "order"}
"""Folders of the cache, in the order in which they are made, and what a table calls their making."""


def open_data(plan: Plan, processes: int) -> RunData:
    """As trainer.prepare makes it and as every rank opens it."""
    return read_data(plan, Screen(sys.stdout, speaks=False), processes=processes)


def phases(cache: Path, *, begun: float) -> dict[str, float]:
    """Seconds of each part of `read_data`: its folder gets its name, which the file system dates, once it is whole."""
    seconds, last = {}, begun
    for kind, name in PHASES.items():
        ended = max(folder.stat().st_ctime for folder in (cache / "data" / kind).iterdir() if folder.is_dir())
        seconds[name], last = ended - last, ended
    return seconds


def whole_epoch(plan: Plan, options: Namespace) -> dict[str, object]:
    """From files to the last micro-batch that holds an example of the first epoch."""
    meter, begun = Meter(), time.time()
    data = open_data(plan, options.processes)
    seconds_to_open = meter.seconds()
    batches, summary = data.batches(plan, ALONE), data.tasks[0].summary
    tokens = rows = step = 0
    first = 0.0
    while data.order.positions(step).start < summary.num_examples:
        for batch in batches.at(step):
            first = first or meter.seconds()
            tokens += int(batch.attention_mask_BT.sum())
            rows += len(batch.input_ids_BT)
        step += 1
    result = meter.result()
    of_epoch = int(data.order.tokens_T[: summary.num_examples].sum())
    assert of_epoch == summary.num_tokens, (of_epoch, summary)
    seconds = phases(Path(plan.cache_folder), begun=begun)
    return result | {
        "first": first,
        "phases": seconds | {"batches": result["seconds"] - seconds_to_open},
        "num_examples": summary.num_examples,
        "tokens": of_epoch,
        "targets": summary.num_targets,
        "slots_used": tokens / (rows * plan.config.data.sequence_length_tokens),
    }


def start(plan: Plan, options: Namespace) -> dict[str, object]:
    """To the micro-batches of the first step, with everything in the cache."""
    meter = Meter()
    data = open_data(plan, options.processes)
    seconds_to_open = meter.seconds()
    first = data.batches(plan, ALONE).at(0)
    result = meter.result()
    assert sum(len(batch.positions) for batch in first) == len(data.order.positions(0))
    return result | {
        "phases": {"open": seconds_to_open, "first step": result["seconds"] - seconds_to_open},
        "num_examples": data.tasks[0].summary.num_examples,
        "tokens": data.tasks[0].summary.num_tokens,
    }


def fill(plan: Plan, options: Namespace) -> dict[str, object]:
    """Put so many examples, drawn from the real ones, in place of those in the cache, and lay out their order."""
    meter, cache = Meter(), Path(plan.cache_folder) / "data"
    task = open_data(plan, options.processes).tasks[0]
    drawn = np.random.Generator(np.random.Philox(SEED)).integers(task.summary.num_examples, size=options.examples)
    folder = cache / "tokens" / task.key
    part = folder.with_name("drawn")
    part.mkdir()
    writer, real = TokenWriter(part), [task[index] for index in range(task.summary.num_examples)]
    for first in range(0, options.examples, ROWS_PER_BATCH):
        indices = drawn[first : first + ROWS_PER_BATCH].tolist()
        names = [f"drawn-{number:08d}" for number in range(first, first + len(indices))]
        writer.add(as_record_batch(names, [real[index] for index in indices]))
    writer.summary.num_targets = sum(real[index].num_targets for index in drawn.tolist())
    writer.close()
    seconds_to_write = meter.seconds()
    for name in (EXAMPLES, LENGTHS, SUMMARY):
        (part / name).replace(folder / name)
    shutil.rmtree(cache / "orders")
    open_data(plan, options.processes)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    seconds_to_lay_out = meter.seconds() - seconds_to_write
    return {"seconds_to_write": seconds_to_write, "seconds_to_lay_out": seconds_to_lay_out, "bytes": size}


def main() -> None:
    """Command line of one measurement."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("epoch", "start", "fill"))
    parser.add_argument("config", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--begun", type=float, required=True, help="when the process was started, seconds since 1970")
    options = parser.parse_args()
    machine = replace(this_machine(), cache_folder=options.cache.absolute())
    plan = make_plan(load_config(options.config), machine=machine)
    os.environ.update(plan.environment)  # as retain train does for trainer.prepare and for the ranks
    load_tokenizer(plan.model_folder)  # transformers imports more the first time
    seconds_to_import = time.time() - options.begun
    measure = {"epoch": whole_epoch, "start": start, "fill": fill}[options.what]
    print(json.dumps({"seconds_to_import": seconds_to_import, **measure(plan, options)}))


if __name__ == "__main__":
    main()

"""One measurement of TRL's data preparation, in a process of its own; benchmarks/data.py starts it.

SFTTrainer prepares the file as it does for training: prompt and completion columns, loss on the completion, best-fit
packing, its own collator. Imports, the model and a first trainer on eight rows come before the clock starts. One JSON
object on the last line of stdout says what was measured.
"""

import json
import os
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from benchmarks.data import ROWS_PER_MICROBATCH
from benchmarks.meter import Meter

IGNORED = -100
MAPS = ("end of text", "tokens", "labels", "packing")
"""Passes over the data of SFTTrainer 1.16, each of which leaves its files in the cache."""


def trainer_of(
    dataset: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Namespace
) -> SFTTrainer:
    """The trainer that a user would make, without what has nothing to do with data."""
    settings = SFTConfig(
        output_dir=str(options.cache / "run"),
        max_length=options.length,
        packing=True,
        packing_strategy="bfd",
        completion_only_loss=True,
        dataset_num_proc=options.processes if options.processes > 1 else None,  # 1 would be a process beside this one
        per_device_train_batch_size=ROWS_PER_MICROBATCH,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    return SFTTrainer(model, args=settings, train_dataset=dataset, processing_class=tokenizer)


def phases(cache: Path, *, begun: float) -> dict[str, float]:
    """Seconds of each pass, from when the last of its files was written; none where the passes are not those known."""
    ends: dict[str, float] = {}
    for path in cache.rglob("cache-*.arrow"):
        fingerprint = path.stem.split("_")[0]
        ends[fingerprint] = max(ends.get(fingerprint, 0.0), path.stat().st_mtime)
    if len(ends) != len(MAPS):
        return {}
    seconds, last = {}, begun
    for name, ended in zip(MAPS, sorted(ends.values()), strict=True):
        seconds[name], last = ended - last, ended
    return seconds


def measured(options: Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """From the file to the last micro-batch of one epoch, or only to the first one."""
    meter = Meter()
    dataset = load_dataset("json", data_files=str(options.file), split="train")
    dataset = dataset.select_columns(["prompt", "completion"])
    seconds_to_load, begun = meter.seconds(), time.time()
    trainer = trainer_of(dataset, model, tokenizer, options)
    prepared = meter.seconds()
    tokens = targets = 0
    first = 0.0
    for batch in trainer.get_train_dataloader():
        first = first or meter.seconds()
        tokens += batch["input_ids"].numel()  # of rows one after the other, without padding
        targets += int((batch["labels"] != IGNORED).sum())
        if options.what == "start":
            break
    result = meter.result()
    passes = phases(options.cache, begun=begun) or {"SFTTrainer": prepared - seconds_to_load}
    return result | {
        "first": first,
        "phases": {"load": seconds_to_load, **passes, "batches": result["seconds"] - prepared},
        "num_examples": len(dataset),
        "tokens": tokens,
        "targets": targets,
        "slots_used": tokens / (len(trainer.train_dataset) * options.length),
    }


def main() -> None:
    """Command line of one measurement."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("epoch", "start"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="HF_HOME lies in it")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--begun", type=float, required=True, help="when the process was started, seconds since 1970")
    options = parser.parse_args()
    assert Path(os.environ["HF_HOME"]).is_relative_to(options.cache), "a cache that others filled"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    trainer_of(Dataset.from_list([{"prompt": "a", "completion": " b"}] * 8), model, tokenizer, options)
    seconds_to_import = time.time() - options.begun
    print(json.dumps({"seconds_to_import": seconds_to_import, **measured(options, model, tokenizer)}))


if __name__ == "__main__":
    main()

"""A trained run as a folder that plain transformers, or peft, loads: `python -m trainer.export RUN DIR`."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.config.errors import InputError
from trainer.config.plan import read_plan
from trainer.config.run_folder import RunFolder
from trainer.data.tokenize import load_tokenizer
from trainer.model import ADAPTER_WEIGHTS, AUTO_CLASSES, LARGEST_FILE, load_trained
from trainer.program import run_program, weights_folder


def export(run_path: Path, target: Path, *, step: int | None, merge: bool) -> str:
    """Write weights, configuration and tokenizer into a new folder, complete or not at all.

    Raises:
        InputError: the target exists, or there is no such checkpoint.
    """
    folder = RunFolder(run_path)
    plan = read_plan(folder.plan)
    weights = weights_folder(folder, step)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists and is not empty. Name a new folder.")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    adapted = (weights / ADAPTER_WEIGHTS).exists()
    if adapted and merge:
        load_trained(plan, weights, merge=True).save_pretrained(part, max_shard_size=LARGEST_FILE)
    else:
        shutil.copytree(weights, part)
    load_tokenizer(plan.model_folder).save_pretrained(part)
    if target.exists():
        target.rmdir()
    part.replace(target)
    kind = "adapter merged into the base" if adapted and merge else "adapter (peft)" if adapted else "full weights"
    loader = AUTO_CLASSES[plan.config.objective].__name__
    loader = loader.replace("Auto", "AutoPeft", 1) if adapted and not merge else loader
    return f"{weights.parent.name} -> {target}: {kind}. Load it with {loader}.from_pretrained({str(target)!r})"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the export."""
    parser = argparse.ArgumentParser(prog="retain export", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--no-merge", dest="merge", action="store_false")
    options = parser.parse_args(argv)
    return run_program(
        options.run,
        "export",
        lambda _: export(options.run, options.target, step=options.step, merge=options.merge),
    )


if __name__ == "__main__":
    sys.exit(main())

"""Measure a model folder with a suite, no run needed: `python -m trainer.evaluate_model request.json`.

The records go into a cache folder, where they are found again as long as model, suite and settings stay the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from trainer.config.errors import InputError
from trainer.config.run_folder import RunFolder
from trainer.console import Screen
from trainer.data.fingerprint import Fingerprints, key_of
from trainer.data.tokenize import PromptEncoder, load_tokenizer
from trainer.engine.inference import InferenceEngine
from trainer.evaluation.baseline import baseline_cache
from trainer.evaluation.measure import Measurement, measure_base
from trainer.evaluation.prepare import examples_key, prepare_capability
from trainer.evaluation.suite import suite_tasks
from trainer.model import COMPUTE_DTYPES, load_base
from trainer.program import run_program


def evaluate_model(request: dict[str, Any], folder: RunFolder, screen: Screen) -> str:
    """Measure every task of a suite; the records are those of step 0 of `folder`.

    Raises:
        InputError: the model cannot be loaded, or the suite cannot be measured with it.
    """
    model_folder, cache = Path(request["model"]), Path(request["cache"])
    encoder = PromptEncoder(load_tokenizer(model_folder))
    measurement = _measurement(request, encoder, cache, screen)
    settings = {key: request[key] for key in ("precision", "device", "sequence_length_tokens")}
    cached = baseline_cache(cache, model_folder, measurement, settings=settings)
    try:
        if cached.restore(folder):
            screen.say(f"{model_folder}: measured before")
            return ""
    except InputError as error:
        screen.say(f"WARNING: {error}. It is measured again.")
    model, _ = load_base(model_folder, attention="sdpa", dtype=COMPUTE_DTYPES[request["precision"]])
    engine = InferenceEngine(
        model, objective="causal_lm", attention="sdpa", precision=request["precision"], device=request["device"]
    )
    screen.start_progress(f"measure {model_folder.name}", total=len(measurement.tasks))
    done: list[str] = []

    def on_task(name: str, value: float) -> None:
        done.append(name)
        screen.advance(len(done), note=f"{name} {value:.3f}")

    measure_base(engine, measurement, folder=folder, null_flips=True, check_stop=lambda: None, on_task=on_task)
    screen.end_progress()
    cached.store(folder)
    return ""


def _measurement(request: dict[str, Any], encoder: PromptEncoder, cache: Path, screen: Screen) -> Measurement:
    tasks = suite_tasks(Path(request["suite"]), variables=request["variables"])
    fingerprints = Fingerprints(cache / "data" / "files")
    tokenizer = key_of("tokenizer", fingerprints.tokenizer(Path(request["model"])))
    data = []
    for _, several in groupby(tasks, key=lambda task: task.examples):
        group = list(several)
        prepared = prepare_capability(
            cache / "data",
            group,
            source_key=examples_key(fingerprints, group[0].spec, tokenizer),
            encoder=encoder,
            context_tokens=request["sequence_length_tokens"],
            max_examples=request["max_examples"],
            on_bad_example="error",
            processes=1,
            say=screen.say,
            timeout_seconds=request["timeout_seconds"],
        )
        data += prepared.data
    return Measurement(tasks, data, encoder, request["examples_per_batch"])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(prog="trainer.evaluate_model", description=__doc__)
    parser.add_argument("request", type=Path, help="JSON: what to measure, written by `retain compare`")
    options = parser.parse_args(argv)
    request = json.loads(options.request.read_text(encoding="utf-8"))
    folder = RunFolder(options.request.parent)
    return run_program(
        folder.path, "evaluate", lambda screen: evaluate_model(request, folder, screen), needs_plan=False
    )


if __name__ == "__main__":
    sys.exit(main())

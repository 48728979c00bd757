"""How long data takes from a file to packed batches, in Retain and beside it in TRL; how much memory; how fast a start.

Needs the demo's assets (`retain demo --prepare-only`) and, for TRL, `pip install -r benchmarks/requirements.txt`. Every
measurement is a process of its own (data_retain.py, data_trl.py) with an empty cache, in an order that turns round
from repeat to repeat; the table has medians. This file knows nothing of tensors: it is small in memory, because a
child's peak counts that of the process it was started from.
"""

import importlib.util
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TRL, LIBRARIES = "TRL", ("trl", "transformers", "datasets", "tokenizers", "pyarrow", "torch")
ROWS_PER_STEP, ROWS_PER_MICROBATCH = 64, 8
EXPECTED_FILL = 0.85
"""Share of a step's tokens that examples take at least, so that the planned steps hold the whole epoch."""

CONTEXT_TOKENS = 4096
BYTES_PER_EXAMPLE = 700
"""Of a store of drawn examples while it is made, with room to spare."""

START_SIZES, START_LENGTH = (100_000, 1_000_000), 128
HEADER = (
    *("what", "examples", "row tokens", "processes", "seconds", "by phase, seconds", "CPU seconds", "first batch"),
    *("tokens a second", "slots used", "peak MiB (after imports; without mapped files)", "TRL's seconds : these (CPU)"),
)
CONFIG = """\
run: {{folder: "{folder}/run"}}
model: {{path: "{folder}/model"}}
data:
  sequence_length_tokens: {length}
  packing: true
  leakage: {leakage}
  tasks: {{reviews: {{train: "{train}", heldout: "{folder}/heldout.jsonl", format: completion}}}}
training: {{num_steps: {num_steps}, tokens_per_step: {step_tokens}, examples_per_device: {rows}, learning_rate: 1e-4}}
layout: {{strategy: single, processes: 1, device: cpu}}
"""
Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured."""

    system: str
    """Retain, Retain without leakage, or TRL."""

    copies: int
    """Of the real examples; 0 where drawn ones stand in for them."""

    length: int
    processes: int


class Bench:
    """The files of one run of the benchmark, and what measures with them."""

    def __init__(self, folder: Path, assets: Path, repeats: int) -> None:
        self._folder, self._repeats, self._tasks = folder, repeats, assets / "demo" / "tasks" / "sentiment"
        self._copy_model(assets / "demo" / "models" / "glassllm-en")
        self._write_rows(folder / "heldout.jsonl", self._reviews("heldout"))
        self._num_reviews, self._tokens_per_example = len(self._reviews("train")), 1.0
        config = self._config(Case(system="probe", copies=1, length=START_LENGTH, processes=1), num_examples=1)
        self._tokens_per_example = self._retain("start", config, folder / "probe")["tokens"] / self._num_reviews

    def measure(self, case: Case) -> Result:
        """One epoch on an empty cache; then the same again up to the first batch, on the cache that it left."""
        cache = self._folder / "cache"
        cold, warm = (self._run(what, case, cache) for what in ("epoch", "start"))
        shutil.rmtree(cache)
        return {**cold, "again": warm["seconds"]}

    def starts(self, sizes: Iterable[int]) -> Iterable[Result]:
        """Starts on a filled cache, for data of several sizes."""
        for size in sizes:
            cache = self._folder / "filled"
            config = self._config(Case(system="Retain", copies=1, length=START_LENGTH, processes=1), num_examples=size)
            filled = self._retain("fill", config, cache, "--examples", str(size))
            runs = [self._retain("start", config, cache) for _ in range(self._repeats)]
            shutil.rmtree(cache)
            yield _median(runs) | {"filled": filled}

    def _run(self, what: str, case: Case, cache: Path) -> Result:
        processes = ("--processes", str(case.processes))
        if case.system != TRL:
            config = self._config(case, num_examples=case.copies * self._num_reviews)
            return self._retain(what, config, cache, *processes)
        arguments = (str(self._file(case.copies)), "--model", str(self._folder / "model"), "--length", str(case.length))
        environment = {"HF_HOME": str(cache / "hf"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        return self._child("data_trl", what, *arguments, "--cache", str(cache), *processes, environment=environment)

    def _retain(self, what: str, config: Path, cache: Path, *arguments: str) -> Result:
        return self._child("data_retain", what, str(config), "--cache", str(cache), *arguments, environment={})

    def _child(self, module: str, *arguments: str, environment: dict[str, str]) -> Result:
        argv = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--begun", str(time.time())]
        # Threads of torch wait for each other over tensors as small as these: TRL's collator takes 8 times as long.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        log = self._folder / "log"
        with log.open("a", encoding="utf-8") as errors:
            answer = subprocess.run(argv, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=errors)
        if answer.returncode:
            sys.exit(f"{' '.join(argv)}\n{answer.stdout.decode()}{log.read_text(encoding='utf-8')}")
        return dict(json.loads(answer.stdout.splitlines()[-1]))

    def _config(self, case: Case, *, num_examples: int) -> Path:
        """A run of one epoch, or a little more."""
        step_tokens = ROWS_PER_STEP * case.length
        text = CONFIG.format(
            folder=self._folder,
            length=case.length,
            leakage="error" if case.system == "Retain" else "off",
            train=self._file(case.copies),
            num_steps=math.ceil(num_examples * self._tokens_per_example / (EXPECTED_FILL * step_tokens)),
            step_tokens=step_tokens,
            rows=ROWS_PER_MICROBATCH,
        )
        path = self._folder / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def _copy_model(self, source: Path) -> None:
        """The demo's model with a longer context: only its tokenizer is used."""
        target = Path(shutil.copytree(source, self._folder / "model")) / "config.json"
        config = json.loads(target.read_text(encoding="utf-8"))
        target.write_text(json.dumps(config | {"max_position_embeddings": CONTEXT_TOKENS}), encoding="utf-8")

    def _reviews(self, part: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self._tasks / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]

    def _file(self, copies: int) -> Path:
        path = self._folder / f"train-{copies}.jsonl"
        if not path.exists():
            self._write_rows(path, self._reviews("train") * copies)
        return path

    def _write_rows(self, path: Path, reviews: list[dict[str, str]]) -> None:
        """Film reviews as prompt and completion, each with another number in front."""
        with path.open("w", encoding="utf-8") as file:
            for number, review in enumerate(reviews):
                prompt = f"Review {number:08d}: {review['text']}\nSentiment:"
                row = {"id": f"{path.stem}-{number}", "prompt": prompt, "completion": f" {review['label']}"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _median(runs: list[Result]) -> Result:
    """Medians of numbers, also of those one level down."""
    return {
        key: _median([run[key] for run in runs]) if isinstance(value, dict) else statistics.median(r[key] for r in runs)
        for key, value in runs[0].items()
    }


def _all_cases(options: Namespace, systems: list[str]) -> list[Case]:
    """The large file at every length and number of processes; smaller ones for the growth of memory."""
    workers = sorted({1, len(os.sched_getaffinity(0))})
    shape = [(options.scale, length, number) for length in options.lengths for number in workers]
    smaller = sorted({max(1, options.scale // 16), max(1, options.scale // 4)} - {options.scale})
    shape += [(copies, options.lengths[0], 1) for copies in smaller]
    return [Case(system=s, copies=c, length=n, processes=p) for c, n, p in shape for s in systems]


def _measure_all(bench: Bench, cases: list[Case], repeats: int) -> dict[Case, Result]:
    runs: dict[Case, list[Result]] = {case: [] for case in cases}
    for repeat in range(repeats):
        for case in cases if repeat % 2 == 0 else reversed(cases):
            runs[case].append(bench.measure(case))
            print(f"{repeat + 1}/{repeats} {case}: {runs[case][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    return {case: _median(results) for case, results in runs.items()}


def _check_same_work(results: dict[Case, Result]) -> None:
    """Both read as many tokens from the same file, and train on as many of them."""
    work = {
        (case.copies, *(result[key] for key in ("num_examples", "tokens", "targets")))
        for case, result in results.items()
    }
    assert len(work) == len({case.copies for case in results}), work


def _row(case: Case, result: Result, trl: Result | None) -> list[str]:
    digits = 3 if case.copies == 0 else 1
    return [
        case.system,
        f"{result['num_examples']:,.0f}",
        str(case.length),
        str(case.processes),
        f"{result['seconds']:.{digits}f}",
        ", ".join(f"{name} {seconds:.{digits}f}" for name, seconds in result["phases"].items()),
        f"{result['cpu']:.{digits}f}",
        f"{result['first']:.1f}; again {result['again']:.2f}" if case.copies else "",
        f"{result['tokens'] / result['seconds']:,.0f}" if case.copies else "",
        f"{result['slots_used']:.1%}" if case.copies else "",
        f"{result['peak_mib']:.0f} ({result['imported_mib']:.0f}; {result['own_mib']:.0f})",
        "" if trl is None else f"{trl['seconds'] / result['seconds']:.2f} ({trl['cpu'] / result['cpu']:.2f})",
    ]


def _machine(libraries: Iterable[str]) -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    processor = f"{models[0].split(':')[1].strip()}, {len(os.sched_getaffinity(0))} cores"
    python = f"Python {platform.python_version()}, {versions}"
    return f"{processor}, load {os.getloadavg()[0]:.1f} at the end; {python}; `{' '.join(sys.argv)}`; {date.today()}"


def _notes(results: dict[Case, Result], starts: list[Result], asked: int) -> list[str]:
    imports = {case.system: f"{case.system} {result['seconds_to_import']:.1f} s" for case, result in results.items()}
    filled = starts[-1]["filled"]
    notes = [
        f"Not counted: start of Python, imports, plan, or model and a first trainer ({', '.join(imports.values())}).",
        "Seconds: from the file to the last batch of one epoch, on an empty cache. First batch: so too; again: on the "
        "cache that this left. Files are in the page cache. Both have the same number of tokens and of targets.",
        f"Slots used: tokens / (packed rows x row tokens). Retain packs the examples of a step of {ROWS_PER_STEP} rows "
        "and pads to the longest of a micro-batch; TRL packs 1,000 examples and passes rows on without padding.",
        "Start: all is in the cache, and the first step's micro-batches are made. For the most examples it holds "
        f"{filled['bytes'] / 2**30:.2f} GiB, written in {filled['seconds_to_write']:.0f} s, their order laid out in "
        f"{filled['seconds_to_lay_out']:.0f} s.",
    ]
    too_many = [f"{asked:,} examples do not fit this disk: the rows above show how the start grows."]
    return [*notes, *(too_many if starts[-1]["num_examples"] < asked else ())]


def main() -> None:
    """Measure everything and print one table."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=int, default=16, help="copies of the 10,256 real examples")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the table has medians")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 1024], help="tokens of a packed row")
    parser.add_argument("--startup-examples", type=int, default=10_000_000, help="of the largest data to start on")
    parser.add_argument("--folder", help="where the temporary folder is made")
    options = parser.parse_args()
    assets = Path(os.environ.get("RETAIN_CACHE") or Path.home() / ".cache" / "retain")
    systems, libraries = ["Retain", "Retain, no leakage", TRL], list(LIBRARIES)
    if importlib.util.find_spec("trl") is None:
        print("trl cannot be imported (pip install -r benchmarks/requirements.txt): Retain alone is measured.")
        systems.remove(TRL)
        libraries.remove("trl")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="retain-benchmark-") as name:
        bench = Bench(Path(name), assets, options.repeats)
        results = _measure_all(bench, _all_cases(options, systems), options.repeats)
        _check_same_work(results)
        largest = min(options.startup_examples, shutil.disk_usage(name).free // BYTES_PER_EXAMPLE)
        starts = list(bench.starts([*(size for size in START_SIZES if size < largest), largest]))
    started = Case(system="Retain, start", copies=0, length=START_LENGTH, processes=1)
    rows = [_row(case, result, results.get(replace(case, system=TRL))) for case, result in results.items()]
    rows += [_row(started, result, None) for result in starts]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *rows)))
    print("", *_notes(results, starts, options.startup_examples), _machine(libraries), sep="\n\n")


if __name__ == "__main__":
    main()

"""How long log-likelihoods of multiple-choice tasks take, in Retain and beside it in EleutherAI's lm-eval.

Needs the demo's assets (`retain demo --prepare-only`) and `pip install -r benchmarks/requirements.txt`, the latter for
the interpreter of --lm-eval-python at least. Same model folder, same JSONL files, same threads, fp32 on the CPU; every
measurement is a process of its own. Both begin with the rows in memory and the model loaded, fill in templates, encode,
score and pick. The program stops where one item is answered otherwise; the table has medians.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from launch.machine import this_machine
from launch.plan import make_plan
from trainer.config.load import load_config
from trainer.data.templates import TaskTemplate
from trainer.data.tokenize import PromptEncoder, load_tokenizer
from trainer.distributed import World
from trainer.engine.plain import PlainEngine
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.likelihood import score_candidates

REPOSITORY = Path(__file__).resolve().parent.parent
CONTEXT_TOKENS, EXAMPLES_PER_BATCH, NUM_SOLVED = 1024, 32, 4
BATCH_SIZES = "16,64,auto"
LARGEST_DIFFERENCE = 1e-3
"""Of nats, relative: the same tokens, other shapes. One other token would change them by far more."""

SIZES = {
    "glassllm-en": {"continuation": 240, "word_order": 240, "same_solved": 48, "other_solved": 48},
    "llama-31m": {"continuation": 16, "same_solved": 6},
}
"""Items of each task for each model."""

LARGER = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 6}
LARGER |= {"num_key_value_heads": 2, "vocab_size": 32_000}
HEADER = ("model", "task", "items", "Retain, s (CPU)", "items/s", "lm-eval, s (CPU)", "items/s", "its batch")
HEADER += ("lm-eval : Retain (CPU)", "accuracy of both", "largest difference of nats")
CONFIG = """\
run: {{folder: "{folder}/run"}}
model: {{path: "{model}"}}
data: {{sequence_length_tokens: 128, tasks: {{t: {{train: "{file}", heldout: "{file}", prompt: "{{{{ prompt }}}}",
  response: "{{{{ prompt }}}}"}}}}}}
training: {{num_steps: 1, examples_per_step: 1, examples_per_device: 1, learning_rate: 1e-4}}
layout: {{strategy: single, processes: 1, device: cpu}}
"""
Result = dict[str, Any]


def write_tasks(tasks: Path, folder: Path) -> dict[str, list[Path]]:
    """Files of items by model, from real news: as they are, behind solved ones, and behind others for each item."""
    kinds = {
        name: [json.loads(line) for line in (tasks / source / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
        for name, source in (("continuation", "continuation"), ("word_order", "word_order"))
    }
    rows = kinds["continuation"]
    solved = [f"{row['prompt']} {row['choices'][row['answer_index']]}\n\n" for row in rows]
    header = "".join(solved[-NUM_SOLVED:])
    kinds["same_solved"] = [row | {"prompt": header + row["prompt"]} for row in rows[:-NUM_SOLVED]]
    kinds["other_solved"] = [
        row | {"prompt": "".join(solved[number + 1 : number + 1 + NUM_SOLVED]) + row["prompt"]}
        for number, row in enumerate(rows[:-NUM_SOLVED])
    ]
    files: dict[str, list[Path]] = {}
    for model, numbers in SIZES.items():
        (folder / model).mkdir()
        files[model] = [folder / model / f"{name}.jsonl" for name in numbers]
        for file, number in zip(files[model], numbers.values(), strict=True):
            kept = [{key: row[key] for key in ("id", "prompt", "choices", "answer_index")} for row in kinds[file.stem]]
            file.write_text("".join(json.dumps(row) + "\n" for row in kept[:number]), encoding="utf-8")
    return files


def write_models(demo: Path, folder: Path) -> None:
    """The demo's model with a longer context, and a larger one with random weights and the same tokenizer."""
    for name in ("glassllm-en", "llama-31m"):
        config = Path(shutil.copytree(demo, folder / name)) / "config.json"
        values = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": CONTEXT_TOKENS}
        config.write_text(json.dumps(values), encoding="utf-8")
    torch.manual_seed(0)
    size = LARGER | {"max_position_embeddings": CONTEXT_TOKENS, "tie_word_embeddings": True, "initializer_range": 0.1}
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**size, **tokens)).save_pretrained(folder / "llama-31m")


def engine_of(model: Path, file: Path, folder: Path) -> PlainEngine:
    """The engine of a run on one processor, in evaluation mode."""
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder, model=model, file=file), encoding="utf-8")
    plan = make_plan(load_config(path), machine=this_machine())
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    engine = PlainEngine(network, plan=plan, world=World(0, 1, 0, torch.device("cpu")))
    assert engine.cache_obstacle is None
    engine.model.eval()
    return engine


def score(engine: PlainEngine, encoder: PromptEncoder, rows: Sequence[Result]) -> list[list[float]]:
    """Nats of each candidate of each row."""
    template = TaskTemplate(task="t", prompt="{{ prompt }}", response=" {{ choices[answer_index] }}")
    examples = []
    for row in rows:
        rendered = template.render(row, where=row["id"])
        choices = tuple(f" {text}" for text in row["choices"])
        prompt_ids = tuple(encoder.prompt_ids(rendered.prompt))
        candidate_ids = tuple(tuple(encoder.text_ids(text)) for text in choices)
        examples.append(
            EvaluationExample(row["id"], rendered.prompt, rendered.response, choices, prompt_ids, candidate_ids)
        )
    found = score_candidates(
        engine,
        examples,
        pad_token_id=encoder.pad_token_id,
        examples_per_batch=EXAMPLES_PER_BATCH,
        check_stop=lambda: None,
    )
    return [[one.nats for one in likelihoods] for likelihoods in found]


def measure_retain(options: Namespace) -> Result:
    """Seconds and nats of each file."""
    engine = engine_of(options.model, options.files[0], options.folder)
    encoder = PromptEncoder(load_tokenizer(options.model))
    result = {}
    for file in options.files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        score(engine, encoder, rows[:4])  # warms up
        begun, cpu = time.perf_counter(), time.process_time()
        nats = score(engine, encoder, rows)
        picked = [one.index(min(one)) for one in nats]
        accuracy = sum(index == row["answer_index"] for index, row in zip(picked, rows, strict=True)) / len(rows)
        spent = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
        result[file.stem] = {**spent, "nats": nats, "accuracy": accuracy}
    return result


def child(argv: Sequence[str], log: Path, threads: int) -> Result:
    """What a process printed on its last line."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(log.parent / "hf")}
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(REPOSITORY)}
    with log.open("a", encoding="utf-8") as errors:
        done = subprocess.run(argv, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}\n{done.stdout}{log.read_text(encoding='utf-8')[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(model: str, files: Sequence[Path], folder: Path, options: Namespace) -> list[list[str]]:
    """Rows of the table for one model."""
    ours: dict[str, list[Result]] = {file.stem: [] for file in files}
    theirs: dict[str, list[Result]] = {file.stem: [] for file in files}
    answers: dict[str, Result] = {}
    sizes = {file.stem: BATCH_SIZES for file in files}
    common = [str(folder / model), "--folder", str(folder / f"tasks-{model}"), "--files", *map(str, files)]
    (folder / f"tasks-{model}").mkdir()
    for repeat in range(options.repeats):
        retain = child(
            [sys.executable, "-m", "benchmarks.evaluate", "--model", *common], folder / "log", options.threads
        )
        program = str(Path(__file__).with_name("evaluate_lm_eval.py"))
        batches = ["--batch-sizes", *sizes.values()]
        batches += [] if repeat else ["--answers"]
        lm_eval = child([options.lm_eval_python, program, *common, *batches], folder / "log", options.threads)
        answers = answers or lm_eval
        for name, found in lm_eval.items():
            seconds = f"Retain {retain[name]['seconds']:.2f}, lm-eval by batch size {found['runs']}"
            print(f"{repeat + 1}/{options.repeats} {model} {name}: {seconds}", file=sys.stderr, flush=True)
            sizes[name] = min(found["runs"], key=lambda size: found["runs"][size]["cpu"])
            ours[name].append(retain[name])
            theirs[name].append(found["runs"][sizes[name]])
    return [row_of(model, name, retain[name], answers[name], ours[name], theirs[name], sizes[name]) for name in ours]


def row_of(
    model: str, name: str, retain: Result, lm_eval: Result, ours: list[Result], theirs: list[Result], size: str
) -> list[str]:
    """A row of the table.

    Raises:
        AssertionError: an item is answered otherwise.
    """
    pairs = list(zip(retain["nats"], lm_eval["nats"], strict=True))
    differing = sum(one.index(min(one)) != other.index(min(other)) for one, other in pairs)
    assert differing == 0, f"{model}, {name}: {differing} items are answered otherwise"
    assert abs(retain["accuracy"] - lm_eval["accuracy"]) < 1e-9, (retain["accuracy"], lm_eval["accuracy"])
    difference = max(abs(a - b) / b for one, other in pairs for a, b in zip(one, other, strict=True))
    assert difference < LARGEST_DIFFERENCE, f"{model}, {name}: nats differ by {difference:.1e}"
    (own, scored), (own_cpu, scored_cpu) = (
        [statistics.median(run[what] for run in runs) for runs in (ours, theirs)] for what in ("seconds", "cpu")
    )
    spent = [f"{own:.2f} ({own_cpu:.2f})", f"{len(pairs) / own:.1f}"]
    spent += [f"{scored:.2f} ({scored_cpu:.2f})", f"{len(pairs) / scored:.1f}", size]
    ratios = f"{scored / own:.2f} ({scored_cpu / own_cpu:.2f})"
    return [model, name, str(len(pairs)), *spent, ratios, f"{retain['accuracy']:.4f}", f"{difference:.0e}"]


def machine(lm_eval_python: str) -> str:
    """What the figures were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    ask = "from importlib.metadata import version; print(*(version(n) for n in ('lm_eval', 'torch', 'transformers')))"
    theirs = subprocess.run([lm_eval_python, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    own = [version("torch"), version("transformers")]
    assert theirs[1:] == own, f"lm-eval runs on torch and transformers {theirs[1:]}, Retain on {own}"
    processor = f"{models[0].split(':')[1].strip()}, {len(os.sched_getaffinity(0))} cores"
    versions = f"Python {platform.python_version()}, lm_eval {theirs[0]}, torch {own[0]}, transformers {own[1]}"
    return f"{processor}, load {os.getloadavg()[0]:.1f} at the end; {versions}; {date.today()}"


def main() -> None:
    """Measure everything and print one table; with --model, measure Retain once, as the processes do."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the table has medians")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process")
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--lm-eval-python", default=sys.executable, help="interpreter that imports lm_eval")
    parser.add_argument("--model", type=Path, help="measure Retain on the files of this model, once")
    parser.add_argument("--files", type=Path, nargs="+", default=[])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.model is not None:
        print(json.dumps(measure_retain(options)))
        return
    assets = Path(os.environ.get("RETAIN_CACHE") or Path.home() / ".cache" / "retain") / "demo"
    with tempfile.TemporaryDirectory(prefix="retain-benchmark-") as name:
        folder = Path(name)
        write_models(assets / "models" / "glassllm-en", folder)
        (folder / "items").mkdir()
        files = write_tasks(assets / "tasks", folder / "items")
        rows = [row for model in options.models for row in compare(model, files[model], folder, options)]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *rows)))
    print("", machine(options.lm_eval_python), sep="\n")


if __name__ == "__main__":
    main()

"""Data as a user meets it: many kinds of files, a split by content, overlap that is found, and `retain data`."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from launch.demo import prepare_demo
from launch.machine import this_machine
from tests.demo_assets import needs_demo_packages
from tests.harness import Launched, retain
from trainer.data.splits import is_held_out

pytestmark = needs_demo_packages


@pytest.fixture(scope="module")
def model_folder() -> Path:
    prepare_demo("glassllm-en", machine=this_machine(), notify=print)
    return this_machine().cache_folder / "demo" / "models" / "glassllm-en"


def reviews(number: int) -> list[dict[str, str]]:
    """Reviews that share no run of five words."""
    return [{"text": " ".join(f"w{n}x{k}" for k in range(6)), "label": ("good", "bad")[n % 2]} for n in range(number)]


def configuration(folder: Path, model: Path, data: dict[str, Any]) -> Path:
    config = {
        "run": {"folder": str(folder / "run")},
        "model": {"path": str(model)},
        "data": {"sequence_length_tokens": 128, **data},
        "training": {"num_steps": 3, "examples_per_step": 4, "learning_rate": 1e-4},
        "layout": {"processes": 1, "strategy": "single", "device": "cpu"},
        "evaluation": {"max_examples_per_task": 20},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fine(done: Launched) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_folder_of_two_kinds_is_split_by_content_and_trained(tmp_path: Path, model_folder: Path) -> None:
    rows = reviews(80)
    write_jsonl(tmp_path / "reviews/a.jsonl", rows[:40])
    lines = ["body,verdict", *(f"{row['text']},{row['label']}" for row in rows[40:])]
    (tmp_path / "reviews/b.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    common = {"format": "labelled", "heldout_share": 0.25}
    parts = {
        "json": {"train": str(tmp_path / "reviews/*.jsonl"), **common},
        "csv": {
            "train": str(tmp_path / "reviews/b.csv"),
            "columns": {"text": "body", "label": "verdict"},
            **common,
        },
    }
    done = retain("train", str(configuration(tmp_path, model_folder, {"tasks": parts})))
    text = fine(done)
    counts = {line.split()[1]: int(line.split()[2]) for line in text.splitlines() if line.startswith("task ")}
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    heldout = {row["capability"]: row["num_examples"] for row in report["rows"]}
    assert {name.rstrip(":"): n + heldout[name.rstrip(":")] for name, n in counts.items()} == {"json": 40, "csv": 40}
    # A quarter of 40 is 10, with a standard deviation of 2.7.
    assert all(2 <= n <= 18 for n in heldout.values())


def test_a_heldout_example_that_is_trained_on_is_an_error_by_default(tmp_path: Path, model_folder: Path) -> None:
    rows = reviews(30)
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    copied = {"text": rows[3]["text"].upper() + "!", "label": rows[3]["label"]}
    heldout = write_jsonl(tmp_path / "heldout.jsonl", [copied, *reviews(45)[31:]])
    task = {"train": str(train), "heldout": str(heldout), "format": "labelled"}
    path = configuration(tmp_path, model_folder, {"tasks": {"quiz": task}})
    done = retain("train", str(path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "1 of 15 held-out examples" in done.stderr
    assert "set data.leakage=warn" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    warned = fine(retain("data", str(path), "data.leakage=warn"))
    assert "WARNING: " in warned
    assert "1 of 15 held-out examples" in warned


def test_bad_examples_are_all_named_or_skipped_and_counted(tmp_path: Path, model_folder: Path) -> None:
    good = "".join(json.dumps(row) + "\n" for row in reviews(20))
    (tmp_path / "train.jsonl").write_text(good + '{"text": "no label"}\n{"text": \n', encoding="utf-8")
    heldout = write_jsonl(tmp_path / "heldout.jsonl", reviews(40)[20:])
    task = {"train": str(tmp_path / "train.jsonl"), "heldout": str(heldout), "format": "labelled"}
    path = configuration(tmp_path, model_folder, {"tasks": {"quiz": task}})
    done = retain("data", str(path))
    assert done.returncode == 2
    assert "train.jsonl:21: missing column label" in done.stderr
    assert "train.jsonl:22: malformed JSON" in done.stderr
    skipped = fine(retain("data", str(path), "data.on_bad_example=skip"))
    (row,) = [line for line in skipped.splitlines() if line.startswith("\u2502 quiz") and "%" not in line]
    cells = [cell.strip() for cell in row.strip("\u2502").split("\u2502")]
    assert cells[:6] == ["quiz", "20", "0", "0", "2", "20"]  # examples, over-long, cut, bad, measured


def test_the_page_shows_shares_by_tokens_and_marks_what_is_trained(tmp_path: Path, model_folder: Path) -> None:
    long = [{"text": " ".join(f"w{n}y{k}" for k in range(20)), "label": "good"} for n in range(30)]
    sources = {}
    for name, rows in (("short", reviews(30)), ("long", long)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        sources[name] = {"train": str(tmp_path / f"{name}.jsonl"), "heldout_share": 0.3, "format": "labelled"}
    data = {"tasks": sources, "mixture": {"unit": "tokens"}, "leakage": "off"}
    path = configuration(tmp_path, model_folder, data)
    page = fine(retain("data", str(path), "training.num_steps=40", "--examples", "2"))
    assert "Mixture, shares of tokens: 160 examples in 40 steps" in page
    assert page.count("50.00%") >= 2  # asked of both
    rows = [line for line in page.splitlines() if line.startswith("\u2502") and "50.00%" in line]
    cells = [[cell.strip() for cell in line.strip("\u2502").split("\u2502")] for line in rows]
    draws = {row[0]: int(row[-2]) for row in cells}
    assert draws["short"] > 1.5 * draws["long"]  # the same number of tokens takes more of the short ones
    assert page.count("[[ good") + page.count("[[ bad") == 4
    assert "Lengths of long in tokens" in page


CHAT_TEMPLATE = (
    "{% for message in messages %}({{ message.role }}) {{ message.content }} (end)\n{% endfor %}"
    "{% if add_generation_prompt %}(assistant) {% endif %}"
)


def test_conversations_are_trained_turn_by_turn_in_the_models_own_template(tmp_path: Path, model_folder: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(model)
    rows = [
        {
            "conversation": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"What is number {n}?"},
                {"role": "assistant", "content": f"It is n{n}."},
                {"role": "user", "content": "Say: Assistant: no."},
                {"role": "assistant", "content": "Yes."},
            ]
        }
        for n in range(60)
    ]
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"train": str(source), "format": "chat", "columns": {"messages": "conversation"}, "heldout_share": 0.2}
    path = configuration(tmp_path, model, {"sequence_length_tokens": 128, "packing": True, "tasks": {"chat": task}})
    page = fine(retain("data", str(path), "data.leakage=off", "--html", str(tmp_path / "page.html")))
    example = page[page.index("Example") : page.index("written:")]
    turns = re.findall(r"\[\[(.*?)\]\]", example, flags=re.DOTALL)
    assert len(turns) == 2
    assert re.fullmatch(r"It is n\d+\. \(end\)", turns[0])
    assert turns[1] == "Yes. (end)"
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("(end)</mark>") == 2
    assert "<svg" in html
    done = retain("train", str(path), "data.leakage=off", "data.tasks.chat.train_on=last")
    assert "loss" in fine(done)


def test_the_split_never_changes() -> None:
    # The share that is held out today must be held out in every later version, or yesterday's test is trained on.
    chosen = [n for n in range(40) if is_held_out(f"example {n}", share=0.25)]
    assert chosen == CHOSEN


CHOSEN = [0, 3, 5, 11, 13, 17, 20, 23, 24, 30, 33, 36, 37, 38, 39]
"""Found once, and never to be changed."""

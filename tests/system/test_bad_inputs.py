"""A mistake in the input is one clear line and exit code 2: no traceback, no hang, nothing lost, nothing left."""

import json
from pathlib import Path

import pytest

from launch.demo import prepare_demo
from launch.machine import this_machine
from tests.demo_assets import needs_demo_packages
from tests.harness import Launched, retain

pytestmark = needs_demo_packages

ROW = {"id": "1", "text": "a fine film", "label": "positive"}


@pytest.fixture(scope="module")
def model_folder() -> Path:
    prepare_demo("glassllm-en", machine=this_machine(), notify=print)
    return this_machine().cache_folder / "demo" / "models" / "glassllm-en"


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    heldout = [{"text": "a dull play", "label": "negative"}, {"text": "one long night", "label": "negative"}]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heldout), encoding="utf-8")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""run: {{folder: {tmp_path}/run}}
model: {{path: {model_folder}}}
data:
  sequence_length_tokens: 128
  tasks:
    sentiment:
      train: {tmp_path}/train.jsonl
      heldout: {tmp_path}/heldout.jsonl
      prompt: "{{{{ text }}}}"
      response: " {{{{ label }}}}"
training: {{num_steps: 2, examples_per_step: 4, learning_rate: 1e-4}}
layout: {{processes: 1, device: cpu}}
""",
        encoding="utf-8",
    )
    return path


def refused(done: Launched, *expected: str) -> None:
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for words in expected:
        assert words in lines[0], f"{words!r} is not in {lines[0]!r}"


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_an_unknown_key(config: Path) -> None:
    replace(config, "learning_rate: 1e-4", "learning_rate: 1e-4, warmup: 3")
    refused(retain("train", str(config)), f"{config}:11", "training.warmup", "Did you mean training.warmup_steps?")


def test_a_wrong_type(config: Path) -> None:
    replace(config, "num_steps: 2", "num_steps: many")
    refused(retain("train", str(config)), f"{config}:11", "training.num_steps", "found 'many'", "integer")


def test_a_missing_file(config: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").unlink()
    refused(retain("train", str(config)), "data.tasks.sentiment.train", "no such file", "train.jsonl")


def test_a_missing_configuration(tmp_path: Path) -> None:
    refused(retain("train", str(tmp_path / "none.yaml")), "none.yaml", "cannot be read", "No such file")


def test_malformed_yaml(config: Path) -> None:
    replace(config, "num_steps: 2", "num_steps: [2")
    refused(retain("train", str(config)), f"{config}:11", "malformed YAML")


def test_an_unknown_model(config: Path, model_folder: Path) -> None:
    replace(config, str(model_folder), "nobody/no-such-model")
    refused(retain("train", str(config)), "model.path", "unknown model 'nobody/no-such-model'", "hf download")


def test_a_sequence_longer_than_the_context(config: Path) -> None:
    replace(config, "sequence_length_tokens: 128", "sequence_length_tokens: 129")
    refused(retain("train", str(config)), "data.sequence_length_tokens", "found 129", "128 or less")


def test_a_batch_that_does_not_divide(config: Path) -> None:
    refused(
        retain("train", str(config), "layout.processes=3", "layout.strategy=ddp"),
        "training.examples_per_step",
        "found 4",
        "3 ranks",
        "3 or 6",
    )


def test_an_unknown_override(config: Path) -> None:
    refused(
        retain("train", str(config), "training.learning_rates=1"),
        "training.learning_rates",
        "Did you mean training.learning_rate?",
    )


def test_a_run_folder_that_exists(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n', encoding="utf-8")
    refused(retain("train", str(config)), "run.folder", "holds an earlier run", "--resume")
    assert metrics.read_text(encoding="utf-8") == '{"step": 1}\n'


def test_a_malformed_line_of_data_and_the_same_command_works_once_it_is_right(config: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps(ROW) + '\n{"id": "2", "text": \n', encoding="utf-8")
    refused(retain("train", str(config)), f"{data}:2", "malformed JSON")
    assert not (tmp_path / "run").exists()
    data.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    (tmp_path / "heldout.jsonl").write_text(
        "".join(json.dumps({**ROW, "id": str(number), "text": f"film {number}"}) + "\n" for number in range(3)),
        encoding="utf-8",
    )
    done = retain("train", str(config))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_missing_column(config: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps(ROW) + '\n\n{"id": "2", "label": "positive"}\n', encoding="utf-8")
    refused(retain("train", str(config)), f"{data}:3", "missing column text", "Columns here: id, label")


def test_an_empty_data_set(config: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n", encoding="utf-8")
    refused(retain("train", str(config)), str(tmp_path / "train.jsonl"), "empty data set")


def test_a_resume_of_nothing(tmp_path: Path) -> None:
    refused(retain("train", "--resume", str(tmp_path)), "plan.json", "Is this a run folder?")


def test_a_run_folder_with_somebody_elses_files(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years", encoding="utf-8")
    refused(retain("train", str(config)), "run.folder", "holds other files (thesis.txt)", "Choose a new folder")
    assert (tmp_path / "run" / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_generation_from_a_folder_that_is_no_run(tmp_path: Path) -> None:
    refused(retain("generate", str(tmp_path), "prompt"), "plan.json", "Is this a run folder?")

"""The same model on the same task: what lm-evaluation-harness chooses and what we choose, document by document."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.compare import run_records
from launch.demo import prepare_demo
from launch.machine import this_machine
from tests.demo_assets import needs_demo_packages
from tests.unit.test_lm_eval_source import CHOICE, asked_by_lm_eval, local_task, rows_of, source_of
from trainer.config.run_folder import RunFolder
from trainer.data.tokenize import PromptEncoder, load_tokenizer

pytest.importorskip("lm_eval", reason="needs pip install 'retain[lm-eval]'")

NATS_TOLERANCE = 1e-4
"""fp32 sums over some dozens of tokens, in batches of other shapes."""

SUITE = """\
tasks:
  endings:
    kind: choice
    data: {{lm_eval: sums, num_fewshot: 1, include_path: {folder}}}
    prompt: "{{{{ prompt }}}}"
    response: "{{{{ answer }}}}"
    choices_column: choices
  ours:
    kind: choice
    data: {{lm_eval: sums, include_path: {shots}}}
    few_shot: {{data: {{lm_eval: sums, include_path: {shots}}}, num_examples: 1}}
    prompt: "{{{{ prompt }}}}"
    response: "{{{{ answer }}}}"
    choices_column: choices
"""
NUM_DOCS = 60
SHORT = [
    {"prompt": "The sun rose over the", "choices": ["hills", "of", "said", "and"], "answer_index": 0},
    {"prompt": "She read the letter and", "choices": ["green", "wept", "two", "the"], "answer_index": 1},
    {"prompt": "He went to the bank of the", "choices": ["is", "for", "river", "had"], "answer_index": 2},
]
"""Solved examples that leave room for a document in the 128 tokens of the demo's model."""


def measured_by_retain(folder: Path, model: Path) -> RunFolder:
    """Records of the suite, by the program that `retain compare` starts."""
    (folder / "suite.yaml").write_text(SUITE.format(folder=folder, shots=folder.parent / "shots"))
    run = folder / "run"
    run.mkdir()
    request = {"model": str(model), "suite": str(folder / "suite.yaml"), "variables": {}, "cache": str(folder / "kept")}
    request |= {"precision": "fp32", "device": "cpu", "sequence_length_tokens": 512, "max_examples": 1000}
    request |= {"examples_per_batch": 16, "timeout_seconds": 60.0}
    (run / "request.json").write_text(json.dumps(request))
    argv = [sys.executable, "-m", "trainer.evaluate_model", str(run / "request.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return RunFolder(run)


@pytest.fixture(scope="module")
def model() -> Path:
    machine = this_machine()
    prepare_demo("glassllm-en", machine=machine, notify=print)
    return machine.cache_folder / "demo/models/glassllm-en"


@needs_demo_packages
def test_token_ids_are_those_of_lm_eval(model: Path, tmp_path: Path) -> None:
    # lm-eval cuts context and continuation out of one text; we encode them apart.
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32")
    encoder = PromptEncoder(load_tokenizer(model))
    for number, (end, delimiter) in enumerate([(":", " "), (": ", ""), ("\n", ""), (":\n\n", ""), (" \n", " ")]):
        fields = {**CHOICE, "doc_to_text": "{{prompt}}" + end, "doc_to_choice": "{{choices}}", "doc_to_target": "0"}
        folder = local_task(tmp_path / str(number), {**fields, "target_delimiter": delimiter}, SHORT)
        for row, requests in zip(rows_of(source_of(folder)), asked_by_lm_eval(folder, num_fewshot=0), strict=True):
            ours = [(encoder.prompt_ids(row["prompt"]), encoder.text_ids(choice)) for choice in row["choices"]]
            assert ours == [lm._encode_pair(*request) for request in requests]


@pytest.mark.slow
@needs_demo_packages
def test_retain_chooses_the_same_answers_as_lm_eval(model: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    file = this_machine().cache_folder / "demo/tasks/word_order/heldout.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    documents = sorted(map(json.loads, lines), key=lambda doc: len(doc["prompt"]))[:NUM_DOCS]
    fields = {
        **CHOICE,
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer_index}}",
    }
    folder = local_task(tmp_path / "task", fields, documents, solved=SHORT)
    local_task(tmp_path / "shots", fields, SHORT)

    records = run_records(measured_by_retain(folder, model))
    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=16)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    theirs = simple_evaluate(
        lm, tasks=["sums"], num_fewshot=1, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    samples = {f"{one['doc_id']}-{one['doc_hash'][:16]}": one for one in theirs["samples"]["sums"]}
    ours = {record.id: record for record in records["endings"]}
    assert ours.keys() == samples.keys()
    assert len(ours) == NUM_DOCS
    different = 0
    for name, record in ours.items():
        nats = [-float(response[0]) for response in samples[name]["filtered_resps"]]
        assert record.candidate_nats == pytest.approx(nats, abs=NATS_TOLERANCE)
        options = [request[1] for request in samples[name]["arguments"]]
        different += record.answer != options[nats.index(min(nats))]
    assert different == 0
    accuracy = sum(record.value for record in ours.values()) / NUM_DOCS
    assert accuracy == theirs["results"]["sums"]["acc,none"]
    assert 0.25 < accuracy < 1.0  # it can tell something: neither guessing nor trivial
    assert {record.prompt.count("\n\n") for record in records["ours"]} == {1}
    assert len(records["ours"]) == len(SHORT)

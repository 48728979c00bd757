"""A classifier from start to end, as a user trains it: fresh head, report, export, one answer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.demo_assets import needs_demo_packages
from tests.fleet import tiny_recipe
from tests.harness import Launched, retain
from tests.stand_ins import stand_in

pytestmark = needs_demo_packages

SETTINGS = (
    "objective=classification",
    "classification.labels=[positive, negative]",
    "training.num_steps=6",
    "evaluation.max_examples_per_task=40",
)
WAYS = {
    "full single": ("layout.strategy=single", "layout.processes=1"),
    "lora zero3": ("layout.strategy=zero3", "layout.processes=2", "method=lora"),
}
LOGITS_TOLERANCE = 1e-5
"""Absolute, fp32, on logits of about 1."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run folder of a way to train the tiny encoder."""
    root = tmp_path_factory.mktemp("classifier")
    recipe = tiny_recipe(root, stand_in(root / "bert", "bert"))
    folders: dict[str, Path] = {}

    def folder_of(way: str) -> Path:
        if way not in folders:
            folders[way] = root / way.replace(" ", "_")
            done = retain("train", str(recipe), *SETTINGS, f"run.folder={folders[way]}", *WAYS[way])
            assert done.returncode == 0, done.stdout + done.stderr
        return folders[way]

    return folder_of


@pytest.mark.parametrize("way", WAYS)
def test_the_report_has_loss_accuracy_and_macro_f1(runs: Callable[[str], Path], way: str) -> None:
    report = json.loads((runs(way) / "report.json").read_text(encoding="utf-8"))
    rows = {(row["measure"], row["unit"]): row for row in report["rows"]}
    assert set(rows) == {("loss", "nats/example"), ("accuracy", "share"), ("macro-F1", "share")}
    assert rows["loss", "nats/example"]["before"] == pytest.approx(0.693, abs=0.05)  # ln 2: the head is fresh
    assert rows["accuracy", "share"]["num_lost"] is not None
    records = (runs(way) / "evaluation/step_000000/sentiment-label.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["answer"] for line in records} <= {"positive", "negative"}


@pytest.mark.parametrize("way", WAYS)
def test_an_exported_classifier_loads_in_plain_transformers_with_its_labels(
    runs: Callable[[str], Path], tmp_path: Path, way: str
) -> None:
    target = tmp_path / "exported"
    done = retain("export", str(runs(way)), str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AutoModelForSequenceClassification" in done.stdout
    model = AutoModelForSequenceClassification.from_pretrained(target).eval()
    assert model.config.id2label == {0: "positive", 1: "negative"}
    answer = retain("generate", str(runs(way)), "A warm and funny film.")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    ids_BT = AutoTokenizer.from_pretrained(target)("A warm and funny film.", return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities_V = model(input_ids=ids_BT).logits[0].softmax(dim=-1)
    best = int(probabilities_V.argmax())
    assert answer.stdout.strip() == f"{model.config.id2label[best]} {float(probabilities_V[best]):.2f}"


def test_the_head_of_an_adapted_classifier_is_trained_and_saved_whole(runs: Callable[[str], Path]) -> None:
    weights = runs("lora zero3") / "checkpoints/step_000006/weights"
    tensors = load_file(weights / "adapter_model.safetensors")
    head = {name: tensor for name, tensor in tensors.items() if "lora_" not in name}
    assert {tuple(tensor.shape) for tensor in head.values()} == {(2, 64), (2,)}
    assert all(tensor.numel() for tensor in tensors.values())
    bias = next(tensor for tensor in head.values() if tensor.dim() == 1)
    assert bias.abs().max() > 0  # it begins at zero


def refused(folder: Path, *overrides: str) -> Launched:
    recipe = tiny_recipe(folder, stand_in(folder / "bert", "bert"))
    done = retain("train", str(recipe), *SETTINGS, f"run.folder={folder}/run", "layout.strategy=single", *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_a_label_that_is_not_among_the_classes_is_told_with_those_that_are(tmp_path: Path) -> None:
    done = refused(tmp_path, "classification.labels=[good, bad]")
    text = done.stdout + done.stderr
    assert "wanted one of classification.labels (good, bad)" in text
    assert "found label 'positive'" in text or "found label 'negative'" in text


def test_a_suite_of_a_language_model_is_refused_for_a_classifier(tmp_path: Path) -> None:
    done = refused(tmp_path, "evaluation.suite=configs/demo_suite.yaml")
    assert "under objective classification" in done.stdout + done.stderr

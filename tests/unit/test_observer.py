"""What is measured when, on a tiny model with stand-ins for all around it; and that before training means before.

The engine is a real model on one rank, with an adapter that is not the identity: as a resumed or warm-started one.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.recipe import Recipe
from tests.stand_ins import build
from tests.unit.test_measure import ONE_RANK
from tests.unit.test_score_ranks import choices, encoder, task_of, texts  # noqa: F401  # a fixture
from trainer import observer
from trainer.config.run_folder import RunFolder
from trainer.data.collate import Batch
from trainer.data.tokenize import PromptEncoder
from trainer.evaluation.examples import EvaluationData
from trainer.evaluation.measure import Measurement
from trainer.evaluation.records import read_records
from trainer.observer import Observer


@dataclass
class OneEngine:
    """A model on one rank; counts its passes."""

    model: Any
    world: Any = ONE_RANK
    num_passes: int = 0
    cache_obstacle: str = "a stand-in takes each candidate as a text of its own"

    def forward(self, batch: Batch) -> Tensor:
        self.num_passes += 1
        return self.model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False).logits


@dataclass
class Notes:
    """A journal that only remembers."""

    lines: list[str] = field(default_factory=list)
    measurements: list[str] = field(default_factory=list)
    comparisons: list[tuple[int, str, list[str]]] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def begin_measurement(self, when: str, tasks: Any) -> None:
        self.measurements.append(when)

    def begin_training(self) -> None:
        pass

    def measured(self, name: str, value: float) -> None:
        pass

    def compared(self, step: int, kind: str, rows: Any) -> None:
        self.comparisons.append((step, kind, [f"{row.name} {row.num_examples}" for row in rows]))


def bare_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model: Any = build("llama", vocab_size=64, pad_token_id=0, bos_token_id=None, eos_token_id=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # large enough for clear preferences
    return model


def adapted_model() -> Any:
    """The bare model under an adapter that changes what it says, and with an output layer trained in full."""
    model = get_peft_model(bare_model(), LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.train()


def measurement_of(words: PromptEncoder) -> Measurement:
    prose, quiz = task_of("text"), task_of("choice")
    tasks = [
        prose.model_copy(update={"name": "prose"}),
        quiz.model_copy(update={"name": "quiz", "spec": quiz.spec.model_copy(update={"tier": "stage"})}),
    ]
    data = [EvaluationData(texts(words, 9), 0), EvaluationData(choices(words, 6), 0)]
    return Measurement(tasks, data, words, examples_per_batch=4, drift_tokens=1000)


@dataclass
class Run:
    """A run of 10 steps, whose first stage ends at step 4."""

    observer: Observer
    engine: OneEngine
    folder: RunFolder
    journal: Notes

    def after(self, *steps: int, pulse: bool = False) -> None:
        for step in steps:
            result: Any = SimpleNamespace(step=step, pulse=pulse)
            self.observer.after_step(result)


StartRun = Callable[..., Run]


@pytest.fixture
def start(recipe: Recipe, encoder: PromptEncoder) -> StartRun:  # noqa: F811
    def start_run(model: Any, *overrides: str, name: str = "run") -> Run:
        data: Any = SimpleNamespace(
            course=SimpleNamespace(stage_starts=[0, 4]), measurement=measurement_of(encoder), tasks=[]
        )
        engine, folder, notes = OneEngine(model), RunFolder(recipe.folder / name), Notes()
        folder.path.mkdir()
        given: tuple[Any, Any] = (engine, notes)
        watching = Observer(recipe.plan(*overrides), folder, given[0], data, journal=given[1], check_stop=lambda: None)
        return Run(watching, engine, folder, notes)

    return start_run


def baseline_files(run: Run) -> dict[str, bytes]:
    """Everything that was measured before training, but for how long it took."""
    folder = run.folder.records(0, "any").parent
    files = [path for path in folder.rglob("*") if path.is_file() and path != run.folder.baseline_notes]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


NO_CACHE = "evaluation.null_flips=false"
"""Another baseline file, so that a run measures for itself."""


def test_before_training_a_model_with_an_adapter_is_exactly_its_base(start: StartRun) -> None:
    # A public benchmark of adapters measured `before` through an adapter that was not the identity.
    bare, adapted = start(bare_model(), name="bare"), start(adapted_model(), NO_CACHE, name="adapted")
    bare.observer.baseline()
    adapted.observer.baseline()
    assert adapted.engine.num_passes > 0
    wanted = baseline_files(bare)
    assert set(wanted) == {"prose.jsonl", "quiz.jsonl", "kept/prose.npz", "null/quiz.jsonl"}
    del wanted["null/quiz.jsonl"]
    assert {name: content for name, content in baseline_files(adapted).items() if name.endswith(".jsonl")} == {
        name: content for name, content in wanted.items() if name.endswith(".jsonl")
    }
    assert read_records(adapted.folder.records(0, "prose")) == read_records(bare.folder.records(0, "prose"))
    assert adapted.engine.model.training
    assert any(parameter.requires_grad for parameter in adapted.engine.model.parameters())


def test_a_base_measured_through_its_adapter_would_be_noticed(start: StartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = start(bare_model(), name="bare")
    bare.observer.baseline()
    monkeypatch.setattr(observer, "base_weights", lambda model: nullcontext())
    adapted = start(adapted_model(), NO_CACHE, name="adapted")
    adapted.observer.baseline()
    for task in ("prose", "quiz"):
        before, wrong = (read_records(run.folder.records(0, task)) for run in (bare, adapted))
        assert before != wrong
    moved = [
        abs(one.value - other.value)
        for one, other in zip(*(read_records(run.folder.records(0, "prose")) for run in (bare, adapted)), strict=True)
    ]
    assert min(moved) > 1e-3


def test_the_next_run_of_the_same_base_takes_its_measurement_from_the_cache(start: StartRun) -> None:
    first, second = start(bare_model(), name="first"), start(bare_model(), name="second")
    first.observer.baseline()
    second.observer.baseline()
    assert (first.engine.num_passes > 0, second.engine.num_passes) == (True, 0)
    assert baseline_files(second) == baseline_files(first)
    assert second.folder.baseline_notes.read_bytes() == first.folder.baseline_notes.read_bytes()
    assert second.journal.measurements == []
    assert len([line for line in second.journal.lines if "measured by an earlier run" in line]) == 1


def test_a_damaged_entry_of_the_cache_is_told_and_measured_again(start: StartRun, recipe: Recipe) -> None:
    first = start(bare_model(), name="first")
    first.observer.baseline()
    (entry,) = (recipe.folder / "cache" / "baselines").iterdir()
    entry.write_bytes(entry.read_bytes()[:-10])
    second = start(bare_model(), name="second")
    second.observer.baseline()
    assert second.engine.num_passes == first.engine.num_passes
    assert baseline_files(second) == baseline_files(first)
    (warning,) = [line for line in second.journal.lines if line.startswith("WARNING")]
    assert "It is measured again" in warning
    third = start(bare_model(), name="third")
    third.observer.baseline()
    assert third.engine.num_passes == 0


def test_a_stage_that_is_over_is_measured_once_and_compared_with_the_base(start: StartRun) -> None:
    run = start(bare_model())
    run.observer.baseline()
    run.observer.begin_training(0)
    run.after(*range(1, 11))
    assert run.journal.measurements == ["before training", "after the stage that ends at step 4"]
    assert run.journal.comparisons == [(4, "stage", ["prose 9", "quiz 6"])]
    (row, *_) = read_records(run.folder.records(4, "prose"))
    assert row.kl_nats == 0.0  # nothing was trained
    # Stopped between the step and its measurement: it is made before the next step, and never twice.
    run.folder.records(4, "quiz").unlink()
    run.observer.begin_training(4)
    run.observer.begin_training(4)
    assert run.journal.measurements[2:] == ["after the stage that ends at step 4"]


def test_a_pulse_is_of_the_first_examples_of_its_tier_and_writes_no_records(start: StartRun) -> None:
    run = start(bare_model(), "evaluation.pulse.examples_per_task=3")
    run.observer.baseline()
    run.observer.begin_training(0)
    before = sorted(run.folder.path.rglob("*"))
    run.after(1, pulse=True)
    run.after(10, pulse=True)  # everything is measured anyway
    assert run.journal.comparisons == [(1, "pulse", ["prose 3"])]
    assert sorted(run.folder.path.rglob("*")) == before


@pytest.mark.parametrize("override", ["evaluation.pulse=null", "evaluation.when=later"])
def test_no_pulse_is_due_where_none_was_asked_for(start: StartRun, override: str) -> None:
    run = start(bare_model(), override)
    run.observer.baseline()
    run.observer.begin_training(0)
    assert not run.observer.pulse_due()
    run.after(*range(1, 11))
    stages = [] if "later" in override else [(4, "stage", ["prose 9", "quiz 6"])]
    assert run.journal.comparisons == stages
    if "later" in override:
        run.observer.final(10)
        assert "retain evaluate" in run.journal.lines[-1]
        assert not Path(run.folder.path / "report.json").exists()

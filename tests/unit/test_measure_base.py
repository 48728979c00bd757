"""Which tasks and examples a tier holds, and what the measurement before training leaves beside its records."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_measure import (
    NoisyEngine,
    OtherRank,
    Padding,
    choice_task_and_data,
    draws,
    measured,
    modes,
    text_data,
    text_task,
)
from trainer.config.run_folder import RunFolder
from trainer.evaluation.drift import read_kept
from trainer.evaluation.measure import Measurement, measure_base, run_tasks
from trainer.evaluation.records import read_records
from trainer.seeding import random_state, restore_random_state


def tiers() -> Measurement:
    """One task of each tier, and one that says none: a text, so a pulse."""
    tasks = [text_task("plain"), *(text_task(tier) for tier in ("full", "pulse", "stage"))]
    tiered = [task.model_copy(update={"spec": task.spec.model_copy(update={"tier": task.name})}) for task in tasks[1:]]
    padding: Any = Padding()
    data = [text_data(*range(1, 6 + number)) for number in range(4)]
    return Measurement([tasks[0], *tiered], data, padding, examples_per_batch=2, drift_tokens=7)


def test_each_tier_holds_those_below_it_in_the_order_of_all() -> None:
    names = {tier: [task.name for task in tiers().of_tier(tier).tasks] for tier in ("pulse", "stage", "full")}
    assert names == {
        "pulse": ["plain", "pulse"],
        "stage": ["plain", "pulse", "stage"],
        "full": ["plain", "full", "pulse", "stage"],
    }
    assert tiers().of_tier("full") == tiers()


@pytest.mark.parametrize("max_examples", [1, 3, 100])
def test_a_part_of_a_tier_is_the_first_of_its_examples(max_examples: int) -> None:
    whole, part = tiers().of_tier("stage"), tiers().of_tier("stage", max_examples=max_examples)
    assert [data.examples for data in part.data] == [data.examples[:max_examples] for data in whole.data]
    assert part.num_sequences == sum(min(max_examples, len(data.examples)) for data in whole.data)
    assert (part.examples_per_batch, part.drift_tokens, part.encoder) == (2, 7, whole.encoder)


def measured_base(engine: Any, folder: Path, *, null_flips: bool, size: int, drift_tokens: int = 7) -> list[str]:
    """Measure a text and a quiz before training; what `on_task` was told."""
    told: list[str] = []
    quiz, quiz_data = choice_task_and_data()
    padding: Any = Padding()
    tasks, data = [text_task("prose"), quiz], [text_data(1, 2, 5), quiz_data]
    measure_base(
        engine,
        Measurement(tasks, data, padding, examples_per_batch=size, drift_tokens=drift_tokens),
        folder=RunFolder(folder),
        null_flips=null_flips,
        check_stop=lambda: None,
        on_task=lambda name, _: told.append(name),
    )
    return told


# prose: 3 texts; quiz: 8 sequences, and again in batches of another size.
@pytest.mark.parametrize(
    ("size", "wanted"),
    [(1, [1] * 3 + [1] * 8 + [2] * 4), (2, [2, 1] + [2] * 4 + [1] * 8), (8, [3] + [8] + [4] * 2)],
)
def test_the_base_is_measured_again_in_other_batches(tmp_path: Path, size: int, wanted: list[int]) -> None:
    engine = NoisyEngine()
    assert measured_base(engine, tmp_path, null_flips=True, size=size) == ["prose", "quiz"]
    assert engine.num_rows == wanted
    folder = RunFolder(tmp_path)
    assert read_records(folder.null_records("quiz")) == read_records(folder.records(0, "quiz"))
    assert not folder.null_records("prose").exists()
    # Texts of 1 and 2 tokens are within 7; with the one of 5 there would be 8.
    assert set(read_kept(folder.kept_tokens("prose"))) == {"id0", "id1"}


def test_what_was_not_asked_for_is_not_measured(tmp_path: Path) -> None:
    engine = NoisyEngine()
    measured_base(engine, tmp_path, null_flips=False, size=2, drift_tokens=0)
    assert engine.num_rows == [2, 1] + [2] * 4
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["prose.jsonl", "quiz.jsonl"]


def test_the_base_leaves_no_trace_on_training_either(tmp_path: Path) -> None:
    engine = NoisyEngine()
    engine.model.train()
    state = random_state()
    wanted = draws()
    restore_random_state(state)
    measured_base(engine, tmp_path, null_flips=True, size=2)
    assert engine.seen == {(False,) * 6}
    assert (modes(engine.model), draws()) == ([True] * 6, wanted)


def test_a_later_measurement_is_compared_with_what_was_kept(tmp_path: Path) -> None:
    measured_base(NoisyEngine(), tmp_path, null_flips=False, size=2)
    measured(NoisyEngine(), tmp_path, [text_task("prose")], [text_data(1, 2, 5)])
    prose = read_records(RunFolder(tmp_path).records(30, "prose"))
    assert [(one.kl_nats, one.num_agreeing_tokens) for one in prose] == [(0.0, 1), (0.0, 2), (None, None)]


def test_tasks_can_be_run_without_writing_anything(tmp_path: Path) -> None:
    engine: Any = NoisyEngine(world=OtherRank())
    found = run_tasks(engine, tiers(), check_stop=lambda: None, keep=True)
    assert list(found.records) == ["plain", "full", "pulse", "stage"]
    assert list(found.kept) == list(found.records)
    assert list(tmp_path.iterdir()) == []

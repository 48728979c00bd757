"""A kept baseline is found again only for the very same measurement, and used only if it is what was stored."""

import json
import multiprocessing
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.recipe import Recipe
from tests.unit.test_measure import Padding, choice_task_and_data, text_data, text_task
from trainer.config.errors import DataError
from trainer.config.run_folder import RunFolder
from trainer.evaluation.baseline import MANIFEST, BaselineCache, baseline_of
from trainer.evaluation.examples import EvaluationData
from trainer.evaluation.measure import Measurement

FILES = {
    "prose.jsonl": b"prose " * 40,
    "null/quiz.jsonl": b"null",
    "kept/prose.npz": bytes(range(256)),
    "a.json": b"{}",
}
NUM_STORES = 120


def measurement_of(**changes: Any) -> Measurement:
    quiz, quiz_data = choice_task_and_data()
    padding: Any = Padding()
    whole = Measurement([text_task("prose"), quiz], [text_data(1, 2, 5), quiz_data], padding, 2, drift_tokens=100)
    return replace(whole, **changes)


def with_example(**changes: Any) -> Measurement:
    """One example of the quiz is another one."""
    whole = measurement_of()
    first, *others = whole.data[1].examples
    return replace(whole, data=[whole.data[0], EvaluationData([replace(first, **changes), *others], 0)])


def with_spec(**changes: Any) -> Measurement:
    """The quiz is measured in another way."""
    whole = measurement_of()
    prose, quiz = whole.tasks
    return replace(whole, tasks=[prose, quiz.model_copy(update={"spec": quiz.spec.model_copy(update=changes)})])


def name_of(recipe: Recipe, *overrides: str, measurement: Measurement | None = None) -> str:
    return baseline_of(recipe.plan(*overrides), measurement or measurement_of()).path.name


CHANGES: dict[str, Measurement] = {
    "one byte of a prompt": with_example(prompt="q"),
    "one token of a prompt": with_example(prompt_ids=(3,)),
    "one token of a candidate": with_example(candidate_ids=((2,), (1,))),
    "a target": with_example(target="b"),
    "a candidate": with_example(candidates=("a", "c")),
    "an id": with_example(example_id="other"),
    "a cluster": with_example(cluster="passage"),
    "the scorer": with_spec(length_normalised=True),
    "the length of answers": with_spec(max_new_tokens=7),
    "the batches": measurement_of(examples_per_batch=4),
    "what is kept": measurement_of(drift_tokens=99),
    "one example fewer": measurement_of().of_tier("full", max_examples=2),
    "one task fewer": replace(measurement_of(), tasks=measurement_of().tasks[:1], data=measurement_of().data[:1]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_measurement_is_another_file(recipe: Recipe, what: str) -> None:
    assert name_of(recipe, measurement=CHANGES[what]) != name_of(recipe)


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.precision=bf16",),
        ("model.attention=eager",),
        ("evaluation.null_flips=false",),
        ("objective=classification", "classification.labels=[a, b]"),
    ],
)
def test_another_way_to_compute_is_another_file(recipe: Recipe, overrides: tuple[str, ...]) -> None:
    assert name_of(recipe, *overrides) != name_of(recipe)


def test_a_head_of_another_seed_or_other_labels_is_another_file(recipe: Recipe) -> None:
    # A fresh head is drawn by the seed; without one the seed says nothing of the base.
    asked = "objective=classification", "classification.labels=[a, b]"
    others = [("run.seed=7",), ("classification.labels=[a, c]",), ("classification.labels=[b, a]",)]
    names = {name_of(recipe, *asked, *other) for other in [(), *others]}
    assert len(names) == 4


def test_a_base_in_fewer_bits_is_another_file(recipe: Recipe) -> None:
    # Both compute in bf16; a base under adapters is kept in it too, one that is trained in fp32.
    names = {name_of(recipe, "training.precision=bf16", f"method={method}") for method in ("full", "lora")}
    assert len(names) == 2


@pytest.mark.parametrize("place", [-1, 300])
def test_one_byte_of_the_weights_is_another_file(recipe: Recipe, place: int) -> None:
    before, path = name_of(recipe), recipe.model / "model.safetensors"
    plan = recipe.plan()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
    assert baseline_of(plan, measurement_of()).path.name != before
    content[place] ^= 1
    path.write_bytes(bytes(content))
    assert baseline_of(plan, measurement_of()).path.name == before


def test_one_byte_of_a_models_configuration_is_another_file(recipe: Recipe) -> None:
    before, plan = name_of(recipe), recipe.plan()
    path = recipe.model / "config.json"
    path.write_text(path.read_text() + " ")
    assert baseline_of(plan, measurement_of()).path.name != before


def test_what_changes_no_number_changes_no_name(recipe: Recipe) -> None:
    # The suite's reading, the course of the training and where it is kept say nothing of the base.
    overrides = ("training.learning_rate=0.5", "training.num_steps=3", "run.seed=7", f"run.folder={recipe.folder}/two")
    assert name_of(recipe, *overrides) == name_of(recipe)
    for change in ({"margin": 0.3}, {"tier": "full"}, {"capability": "other"}):
        assert name_of(recipe, measurement=with_spec(**change)) == name_of(recipe)


def folder_with(path: Path, files: dict[str, bytes]) -> RunFolder:
    """A run folder whose base was measured."""
    folder = RunFolder(path)
    for name, content in files.items():
        target = folder.records(0, "any").parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def content_of(folder: RunFolder) -> dict[str, bytes]:
    """Every file of a run folder."""
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def stored(tmp_path: Path, **parts: str) -> BaselineCache:
    cache = BaselineCache(tmp_path / "cache" / "baselines" / "key.zip", {"model": ["m 1"], **parts})
    cache.store(folder_with(tmp_path / "stored", FILES))
    return cache


WANTED = {f"evaluation/step_000000/{name}": content for name, content in FILES.items()}


def test_the_same_bytes_come_back_in_place_of_what_was_there(tmp_path: Path) -> None:
    cache = stored(tmp_path)
    fresh, used = RunFolder(tmp_path / "fresh"), folder_with(tmp_path / "used", {"old.jsonl": b"half"})
    fresh.evaluation.mkdir(parents=True)
    for folder in (fresh, used):
        assert cache.restore(folder)
        assert content_of(folder) == WANTED
    assert [entry.name for entry in cache.path.parent.iterdir()] == ["key.zip"]


def test_what_was_never_stored_is_not_there(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "run", {"old.jsonl": b"old"})
    before = content_of(folder)
    assert not BaselineCache(tmp_path / "nothing.zip", {}).restore(folder)
    assert content_of(folder) == before


def refused(cache: BaselineCache, tmp_path: Path) -> str:
    """The complaint; the run folder must be as before."""
    folder = folder_with(tmp_path / "victim", {"old.jsonl": b"old"})
    with pytest.raises(DataError) as caught:
        cache.restore(folder)
    assert content_of(folder) == {"evaluation/step_000000/old.jsonl": b"old"}
    assert [entry.name for entry in folder.evaluation.iterdir()] == ["step_000000"]
    message = str(caught.value)
    assert message.startswith(f"{cache.path}: not the baseline that was stored there")
    assert "\n" not in message
    return message


def rewritten(path: Path, edit: Callable[[dict[str, bytes]], None]) -> None:
    """The archive with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def edited_manifest(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        members[MANIFEST] = json.dumps(json.loads(members[MANIFEST]) | changes).encode()

    return edit


EDITS: dict[str, Callable[[dict[str, bytes]], None]] = {
    "one byte of a member": lambda members: members.update({"prose.jsonl": b"prosf " + FILES["prose.jsonl"][6:]}),
    "a member less": lambda members: members.pop("kept/prose.npz") and None,
    "a member more": lambda members: members.update({"other.jsonl": b"x"}),
    "two members swapped": lambda members: members.update(
        {"prose.jsonl": FILES["null/quiz.jsonl"], "null/quiz.jsonl": FILES["prose.jsonl"]}
    ),
    "no manifest": lambda members: members.pop(MANIFEST) and None,
    "a manifest that is no JSON": lambda members: members.update({MANIFEST: b"{"}),
    "a manifest that is no object": lambda members: members.update({MANIFEST: b"[]"}),
    "a manifest of another model": edited_manifest(parts={"model": ["m 2"]}),
    "a manifest of no model": edited_manifest(parts=None),
    "a manifest with another hash": edited_manifest(sha256=dict.fromkeys(FILES, "0" * 64)),
    "a manifest without hashes": edited_manifest(sha256=None),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_entry_that_was_edited_is_refused(tmp_path: Path, what: str) -> None:
    cache = stored(tmp_path)
    rewritten(cache.path, lambda members: None)
    assert cache.restore(RunFolder(tmp_path / "control"))
    rewritten(cache.path, EDITS[what])
    refused(cache, tmp_path)


def test_an_entry_of_another_model_under_this_name_is_refused(tmp_path: Path) -> None:
    cache = stored(tmp_path)
    other = replace(cache, parts={"model": ["m 2"]})
    assert "of another model, suite or way to measure" in refused(other, tmp_path)


def test_an_entry_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    cache = stored(tmp_path)
    whole = cache.path.read_bytes()
    for length in {0, 1, 4, 30, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1}:
        cache.path.write_bytes(whole[:length])
        refused(cache, tmp_path)


def test_no_flipped_byte_of_an_entry_gives_another_measurement(tmp_path: Path) -> None:
    # Flags, sizes, compressed data, sums, names: each byte once. Where it says nothing of the content (a time stamp),
    # the content must come back whole.
    cache = stored(tmp_path)
    whole = cache.path.read_bytes()
    num_refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        cache.path.write_bytes(bytes(damaged))
        folder = RunFolder(tmp_path / "victim")
        folder.evaluation.mkdir(parents=True, exist_ok=True)
        try:
            assert cache.restore(folder), place
            assert content_of(folder) == WANTED, place
        except DataError:
            num_refused += 1
    assert num_refused > len(whole) / 2


def store_often(folder: Path, letter: str) -> None:
    """One of two processes that store at once: every file of its measurement is of its own letter."""
    cache = BaselineCache(folder / "cache" / "key.zip", {"model": "m"})
    for number in range(NUM_STORES):
        content = letter.encode() * (1000 + 400 * (number % 5))
        cache.store(folder_with(folder / letter, {f"{name}.jsonl": content for name in "xyz"}))


def test_of_two_that_store_at_once_one_is_read_whole(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=store_often, args=(tmp_path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    cache, folder = BaselineCache(tmp_path / "cache" / "key.zip", {"model": "m"}), RunFolder(tmp_path / "reader")
    folder.evaluation.mkdir(parents=True)
    seen = set()
    num_read = 0
    while any(writer.is_alive() for writer in writers):
        if cache.restore(folder):
            num_read += 1
            contents = set(content_of(folder).values())
            assert len(contents) == 1
            seen.add(contents.pop()[:1])
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert num_read > 20
    assert seen <= {b"a", b"b"}
    assert [entry.name for entry in cache.path.parent.iterdir()] == ["key.zip"]

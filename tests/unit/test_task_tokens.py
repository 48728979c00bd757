"""The tokens of a task: made once, the same on one process and on several, with every policy told and counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.demo_assets import needs_demo_packages
from tests.stand_ins import stand_in
from trainer.config.data_schema import DataSection
from trainer.config.errors import DataError
from trainer.data import chunks
from trainer.data.heldout import write_heldout
from trainer.data.leakage import Overlap
from trainer.data.task_tokens import prepare_task
from trainer.data.templates import Rendered
from trainer.data.token_store import TaskData

pytestmark = needs_demo_packages
Prepare = Callable[..., tuple[TaskData, list[Overlap]]]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in(tmp_path_factory.mktemp("model"), "llama")


def rows(number: int) -> list[dict[str, str]]:
    return [{"id": f"r{n}", "text": f"film number {n} " + "good " * (n % 7), "label": "yes"} for n in range(number)]


@pytest.fixture
def prepare(tmp_path: Path, model_folder: Path) -> Prepare:
    """Prepare a task over the given rows; the source is named by what it holds, as the fingerprint does."""

    def run(
        rows: list[Any], *, processes: int = 1, heldout: Path | None = None, **settings: Any
    ) -> tuple[TaskData, list[Overlap]]:
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        path = tmp_path / "train.jsonl"
        path.write_text(text, encoding="utf-8")
        task = {"train": str(path), "heldout": "elsewhere", "format": "labelled", **settings.pop("task", {})}
        data = DataSection.model_validate({"sequence_length_tokens": 64, **settings, "tasks": {"quiz": task}})
        return prepare_task(
            tmp_path / "cache",
            "quiz",
            data,
            source_key=text,
            model_folder=str(model_folder),
            labels=(),
            heldout_folders=[heldout] if heldout else [],
            processes=processes,
            say=print,
        )

    return run


def contents(task: TaskData) -> list[tuple[str, list[int], Any]]:
    return [(task.example_id(n), task[n].input_ids.tolist(), task[n].spans) for n in range(task.num_examples)]


def test_several_processes_make_the_same_as_one(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 50)
    monkeypatch.setattr(chunks, "CHUNKS_BY_MYSELF", 1)
    many = rows(1200)
    one, _ = prepare(many, processes=1)
    two, _ = prepare([*many, ""], processes=2)  # a blank line at the end: another source with the same rows
    assert one.key != two.key
    assert contents(one) == contents(two)
    assert [name for name, _, _ in contents(one)] == [row["id"] for row in many]
    assert one.summary == two.summary


def test_prepared_tokens_are_opened_not_made_again(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = prepare(rows(10))
    monkeypatch.setattr("trainer.data.task_tokens.in_order", lambda *_, **__: pytest.fail("made again"))
    again, _ = prepare(rows(10))
    assert contents(first) == contents(again)


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_length_tokens": 65},
        {"on_overlength": "drop"},
        {"task": {"format": "templates", "prompt": "{{ text }}:", "response": "{{ label }}"}},
        {"task": {"columns": {"text": "id"}}},
    ],
)
def test_another_wording_or_limit_is_made_anew(prepare: Prepare, change: dict[str, Any]) -> None:
    assert prepare(rows(10))[0].key != prepare(rows(10), **change)[0].key


def test_a_weight_changes_no_token(prepare: Prepare) -> None:
    assert prepare(rows(10))[0].key == prepare(rows(10), task={"weight": 3})[0].key


LONG = [{"id": "short", "text": "a b", "label": "yes"}, {"id": "long", "text": "word " * 60, "label": "no"}]


def test_over_long_examples_are_counted_and_the_first_is_named(prepare: Prepare) -> None:
    with pytest.raises(DataError) as caught:
        prepare([*LONG, {**LONG[1], "id": "longer"}])
    message = str(caught.value)
    assert "train.jsonl:2 has " in message
    assert "more than data.sequence_length_tokens 64 (and 1 more)" in message
    assert "set data.on_overlength to drop or truncate" in message


def test_over_long_examples_are_left_out_whole(prepare: Prepare) -> None:
    task, _ = prepare(LONG, on_overlength="drop")
    assert [name for name, _, _ in contents(task)] == ["short"]
    assert task.summary.num_overlength == 1


def test_an_example_cut_so_that_nothing_is_learnt_is_bad(prepare: Prepare) -> None:
    with pytest.raises(DataError) as caught:
        prepare(LONG, on_overlength="truncate")
    assert "train.jsonl:2: no trained token is left of " in str(caught.value)
    task, _ = prepare(LONG, on_overlength="truncate", on_bad_example="skip")
    assert [name for name, _, _ in contents(task)] == ["short"]
    assert (task.summary.num_bad, task.summary.num_truncated) == (1, 0)


def test_an_example_that_is_cut_keeps_what_it_has_to_learn(prepare: Prepare) -> None:
    answer = {"id": "answer", "text": "say it", "label": "word " * 60}
    task, _ = prepare([answer], on_overlength="truncate")
    assert len(task[0].input_ids) == 64
    ((start, end),) = task[0].spans
    assert 0 < start < end == 64
    assert task.summary.num_truncated == 1


def test_nothing_left_is_refused(prepare: Prepare) -> None:
    with pytest.raises(DataError, match="empty data set: all 1 examples are over-long"):
        prepare(LONG[1:], on_overlength="drop")


def test_all_bad_rows_are_told_together_across_chunks(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 2)
    with pytest.raises(DataError) as caught:
        prepare([*rows(3), {"text": "no label"}, *rows(2), "{", *rows(1), {"text": None, "label": "x"}])
    assert sorted(line.split(":")[1] for line in str(caught.value).splitlines()) == ["4", "7", "9"]


def test_overlaps_with_what_is_held_out_are_found_once_and_looked_for_anew_when_that_changes(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heldout(name: str, text: str) -> Path:
        (tmp_path / name).mkdir()
        held = Rendered("h1", text, "yes", bare_prompt=text)
        write_heldout(tmp_path / name / "heldout.jsonl", "quiz", [held])
        return tmp_path / name

    copied, other = heldout("one", rows(10)[6]["text"]), heldout("two", "quite another film")
    task, found = prepare(rows(10), heldout=copied)
    assert [(overlap.example_id, overlap.train_id, overlap.train_task) for overlap in found] == [("h1", "r6", "quiz")]
    same, none = prepare(rows(10), heldout=other)
    assert none == []
    assert same.key == task.key
    monkeypatch.setattr("trainer.data.task_tokens.in_order", lambda *_, **__: pytest.fail("looked again"))
    assert prepare(rows(10), heldout=copied)[1] == found

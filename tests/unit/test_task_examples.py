"""Each example of a split source is on exactly one side, and all answers to a question are on the same one."""

import json
from pathlib import Path

from trainer.config.data_schema import TaskSection
from trainer.data.examples import Part, task_examples
from trainer.data.sources import BadExamples

NUM_QUESTIONS = 200


def source(folder: Path) -> Path:
    rows = [
        {"id": f"{n}{kind}", "text": text, "label": label}
        for n in range(NUM_QUESTIONS)
        for kind, text, label in (("a", f"film number {n}", "good"), ("b", f"FILM  number {n}!", "bad"))
    ]
    path = folder / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ids(task: TaskSection, part: Part) -> list[str]:
    return [example.example_id for _, example in task_examples("quiz", task, part=part, bad=BadExamples("error"))]


def test_a_source_without_held_out_examples_is_split_by_its_questions(tmp_path: Path) -> None:
    task = TaskSection.model_validate({"train": str(source(tmp_path)), "format": "labelled", "heldout_share": 0.3})
    train, heldout = ids(task, "train"), ids(task, "heldout")
    assert sorted(train + heldout) == sorted(f"{n}{kind}" for n in range(NUM_QUESTIONS) for kind in "ab")
    assert {name[:-1] for name in train} & {name[:-1] for name in heldout} == set()
    # 60 of 200 questions, with a standard deviation of 6.5: five of them on either side.
    assert 28 < len(heldout) / 2 < 92


def test_a_source_of_its_own_is_taken_whole(tmp_path: Path) -> None:
    path = str(source(tmp_path))
    task = TaskSection.model_validate({"train": path, "heldout": path, "format": "labelled"})
    assert len(ids(task, "train")) == len(ids(task, "heldout")) == 2 * NUM_QUESTIONS


def test_running_text_is_split_by_itself(tmp_path: Path) -> None:
    rows = [{"text": f"passage number {n}"} for n in range(NUM_QUESTIONS)]
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = TaskSection.model_validate({"train": str(tmp_path / "prose.jsonl"), "format": "text", "heldout_share": 0.3})
    assert 28 < len(ids(task, "heldout")) < 92

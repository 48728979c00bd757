"""Each example of a split source is on exactly one side, all answers to a question on the same one; and what becomes
of examples that are too long: told, left out or cut, never in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_tokenize import BOS, EOS, ids_of, tokenizer_of
from trainer.config.data_schema import DataSection, TaskSection
from trainer.config.errors import DataError
from trainer.data.chunks import TaskRecipe, heldout_chunk, train_chunk
from trainer.data.sources import BadExamples, read_rows
from trainer.data.task_tokens import prepare_task
from trainer.data.token_store import TaskData
from trainer.data.tokenize import TokenizedExample

NUM_QUESTIONS = 200
LIMIT = 8
ASKED = "p{{ q }}"
"""<s> and p before the question: an example of a question of 2 and an answer of 3 letters has 8 tokens, with </s>."""


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def source(folder: Path) -> str:
    rows = [
        {"id": f"{n}{kind}", "text": text, "label": label}
        for n in range(NUM_QUESTIONS)
        for kind, text, label in (("a", f"film number {n}", "good"), ("b", f"FILM  number {n}!", "bad"))
    ]
    return write(folder / "all.jsonl", rows)


def model_folder(folder: Path) -> str:
    """A tokenizer that puts <s> before a text."""
    tokenizer_of(puts_bos=True).save_pretrained(folder / "model")
    return str(folder / "model")


def sides(folder: Path, task: TaskSection) -> tuple[list[str], list[str], int]:
    """Ids to train on, ids held out, and how many the training side counted as held out."""
    recipe = TaskRecipe(
        key=str(folder),
        name="quiz",
        task=task,
        model_folder=model_folder(folder),
        labels=(),
        chat_template=False,
        sequence_length_tokens=1000,
        on_overlength="error",
    )
    train = list(read_rows(task.train, columns={}, bad=BadExamples("error")))
    heldout = list(read_rows(task.heldout or task.train, columns={}, bad=BadExamples("error")))
    chunk = train_chunk(recipe, train)
    found, bad = heldout_chunk(recipe, heldout)
    assert chunk.batch is not None
    assert chunk.bad == bad == []
    ids = chunk.batch.column("example_id").to_pylist()
    return ids, [example.example_id for _, example in found], chunk.num_held_out


def prepared(folder: Path, rows: list[dict[str, Any]], *, labels: tuple[str, ...] = (), **data: Any) -> TaskData:
    """The tokens of a task of questions and answers, of which none is held out."""
    path = write(folder / "rows.jsonl", rows)
    task = {"train": path, "heldout": path, "prompt": ASKED, "response": "{{ a }}"}
    section = DataSection.model_validate({"sequence_length_tokens": LIMIT, "tasks": {"quiz": task}, **data})
    tokens, overlaps = prepare_task(
        folder / "cache",
        "quiz",
        section,
        source_key="what the file holds",
        model_folder=model_folder(folder),
        labels=labels,
        heldout_folders=(),
        processes=1,
        say=lambda line: None,
    )
    assert overlaps == []
    return tokens


def refused(folder: Path, rows: list[dict[str, Any]], **data: Any) -> str:
    """The complaint, the folder left out."""
    with pytest.raises(DataError) as caught:
        prepared(folder, rows, **data)
    return str(caught.value).replace(f"{folder}/", "")


def question(name: str, length: int, answer: str = "abc") -> dict[str, Any]:
    """An example of so many tokens and more: the question has the rest of them."""
    return {"id": name, "q": "q" * (length - len("<p/") - len(answer)), "a": answer}


def examples(task: TaskData) -> dict[str, TokenizedExample]:
    return {task.example_id(index): task[index] for index in range(task.num_examples)}


def test_a_source_without_held_out_examples_is_split_by_its_questions(tmp_path: Path) -> None:
    task = TaskSection.model_validate({"train": source(tmp_path), "format": "labelled", "heldout_share": 0.3})
    train, heldout, num_held_out = sides(tmp_path, task)
    assert sorted(train + heldout) == sorted(f"{n}{kind}" for n in range(NUM_QUESTIONS) for kind in "ab")
    assert num_held_out == len(heldout)
    assert {name[:-1] for name in train} & {name[:-1] for name in heldout} == set()
    # 60 of 200 questions, with a standard deviation of 6.5: five of them on either side.
    assert 28 < len(heldout) / 2 < 92


def test_a_source_of_its_own_is_taken_whole(tmp_path: Path) -> None:
    path = source(tmp_path)
    task = TaskSection.model_validate({"train": path, "heldout": path, "format": "labelled"})
    train, heldout, num_held_out = sides(tmp_path, task)
    assert len(train) == len(heldout) == 2 * NUM_QUESTIONS
    assert num_held_out == 0


def test_running_text_is_split_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "prose.jsonl", [{"text": f"passage number {n}"} for n in range(NUM_QUESTIONS)])
    task = TaskSection.model_validate({"train": path, "format": "text", "heldout_share": 0.3})
    train, heldout, _ = sides(tmp_path, task)
    assert 28 < len(heldout) < 92
    assert len(set(train)) == NUM_QUESTIONS - len(heldout)


def test_examples_keep_their_ids_and_the_order_of_the_source(tmp_path: Path) -> None:
    task = prepared(tmp_path, [question("b", 6, "a"), question("a", 7, "b"), {"q": "", "a": "c"}])
    first, second, third = examples(task).items()
    assert [first[0], second[0], len(third[0])] == ["b", "a", 16]
    assert first[1].input_ids.tolist() == [BOS, *ids_of("pqq"), *ids_of("a"), EOS]
    assert third[1].input_ids.tolist() == [BOS, *ids_of("pc"), EOS]
    assert [one.spans for one in (first[1], second[1], third[1])] == [((4, 6),), ((5, 7),), ((2, 4),)]
    assert (task.name, task.num_examples, task.lengths.tolist()) == ("quiz", 3, [6, 7, 4])


def test_an_example_of_exactly_the_length_fits(tmp_path: Path) -> None:
    assert prepared(tmp_path, [question("a", LIMIT)]).lengths.tolist() == [LIMIT]


def test_an_example_one_token_too_long_is_an_error_with_its_place_and_both_lengths(tmp_path: Path) -> None:
    assert refused(tmp_path, [question("a", LIMIT), question("b", LIMIT + 1)]) == (
        "data.tasks.quiz: rows.jsonl:2 has 9 tokens, more than data.sequence_length_tokens 8. "
        "Raise it, or set data.on_overlength to drop or truncate."
    )


def test_of_several_over_long_examples_the_first_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    # More rows than are encoded at once: the count goes over all of them.
    rows = [question(str(n), 11 if n in (700, 800, 1500) else LIMIT) for n in range(2000)]
    assert refused(tmp_path, rows).startswith(
        "data.tasks.quiz: rows.jsonl:701 has 11 tokens, more than data.sequence_length_tokens 8 (and 2 more). Raise it"
    )
    assert list(tmp_path.glob("cache/*/*/")) == []  # nothing that a later run could take for the whole task


def test_over_long_examples_are_dropped_whole_and_counted_where_that_was_asked(tmp_path: Path) -> None:
    rows = [question("a", 7), question("b", 9), question("c", 8), question("d", 50)]
    task = prepared(tmp_path, rows, on_overlength="drop")
    assert list(examples(task)) == ["a", "c"]
    summary = task.summary
    assert (summary.num_examples, summary.num_overlength, summary.num_truncated) == (2, 2, 0)
    assert (summary.num_tokens, summary.num_targets, summary.longest) == (7 + 8, 4 + 4, 8)


def test_a_task_whose_examples_were_all_dropped_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, [question("a", 9), question("b", 9)], on_overlength="drop")
    assert message == "data.tasks.quiz: empty data set: all 2 examples are over-long. Raise the length."


def test_over_long_examples_are_cut_and_counted_where_that_was_asked(tmp_path: Path) -> None:
    # <s> p q | a b c d e </s> has 9 tokens: the end is lost.  <s> p q q q q q | a b c </s>: only a is left to learn.
    rows = [question("a", 8), question("b", 9, "abcde"), question("c", 11)]
    task = prepared(tmp_path, rows, on_overlength="truncate")
    found = examples(task)
    assert found["a"].input_ids.tolist() == [BOS, *ids_of("pqqabc"), EOS]
    assert (found["b"].input_ids.tolist(), found["b"].spans) == ([BOS, *ids_of("pqabcde")], ((3, 8),))
    assert (found["c"].input_ids.tolist(), found["c"].spans) == ([BOS, *ids_of("pqqqqqa")], ((7, 8),))
    summary = task.summary
    assert (summary.num_examples, summary.num_overlength, summary.num_truncated) == (3, 0, 2)
    assert (summary.num_tokens, summary.num_targets, summary.longest) == (24, 4 + 5 + 1, 8)


def test_an_example_cut_so_that_nothing_is_left_to_learn_is_a_bad_one(tmp_path: Path) -> None:
    rows = [question("a", 8), question("b", 12), question("c", 9)]
    assert refused(tmp_path, rows, on_overlength="truncate") == (
        "rows.jsonl:2: no trained token is left of 12 after cutting at 8: nothing to learn from. "
        "Raise data.sequence_length_tokens, or set data.on_overlength=drop."
    )
    task = prepared(tmp_path, rows, on_overlength="truncate", on_bad_example="skip")
    assert list(examples(task)) == ["a", "c"]
    assert (task.summary.num_bad, task.summary.num_truncated, task.summary.num_overlength) == (1, 1, 0)


def test_a_cut_text_of_a_classifier_keeps_its_class(tmp_path: Path) -> None:
    # <s> p and the question, no answer: 5 and 12 tokens.
    rows = [{"id": "a", "q": "qqq", "a": "good"}, {"id": "b", "q": "q" * 10, "a": "bad"}]
    task = prepared(tmp_path, rows, labels=("good", "bad"), on_overlength="truncate")
    assert [(len(one.input_ids), one.label) for one in examples(task).values()] == [(5, 0), (8, 1)]
    assert (task.summary.num_targets, task.summary.num_truncated) == (2, 1)


def test_a_label_that_is_no_class_is_told_with_its_place(tmp_path: Path) -> None:
    rows = [{"id": "a", "q": "q", "a": "good"}, {"id": "b", "q": "q", "a": "Good"}]
    assert refused(tmp_path, rows, labels=("good", "bad")).startswith("rows.jsonl:2: found label 'Good', wanted")

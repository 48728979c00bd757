"""Solved examples in front of a question: always the same, never the question itself; and clusters of questions."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_examples import ENCODER, prepared, written
from trainer.config.errors import DataError
from trainer.data.templates import Rendered
from trainer.evaluation.examples import EvaluationExample, with_solved
from trainer.evaluation.suite_schema import FewShotSection

QUESTION = {"kind": "generate", "prompt": "Q: {{ q }}\nA:", "response": " {{ a }}", "max_new_tokens": 3}
LONG_CONTEXT = 500


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"row-{n}", "q": f"what is {n}", "a": f"it is {n}"} for n in range(count)]


def solved_file(folder: Path, content: list[dict[str, Any]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return str(written(folder, content))


def measured(
    folder: Path,
    content: list[dict[str, Any]],
    *,
    solved: list[dict[str, Any]] | None = None,
    num_examples: int = 3,
    **fields: Any,
) -> list[EvaluationExample]:
    """The examples of a task with so many solved ones, from its own file or from another one."""
    data = solved_file(folder / "solved", content if solved is None else solved)
    few_shot = {"data": data, "num_examples": num_examples}
    task = {**QUESTION, "few_shot": few_shot, **fields}
    return prepared(folder, content, task, context_tokens=LONG_CONTEXT).data[0].examples


def refused(folder: Path, content: list[dict[str, Any]], **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        measured(folder, content, **fields)
    message = str(caught.value).replace(f"{folder}/", "")
    assert "\n" not in message
    return message


def shown(example: EvaluationExample) -> tuple[list[str], str]:
    """The solved examples of a prompt, and the question at its end."""
    *header, question = example.prompt.split("\n\n")
    return header, question


def test_a_prompt_is_solved_examples_and_then_the_question(tmp_path: Path) -> None:
    other = [{"q": "sky", "a": "blue"}, {"q": "sky", "a": "blue"}, {"q": "sun", "a": "hot"}]
    for example in measured(tmp_path, rows(4), solved=other, num_examples=1):
        (header,), question = shown(example)
        assert header in ("Q: sky\nA: blue", "Q: sun\nA: hot")
        assert question.startswith("Q: what is ")
        assert question.endswith("\nA:")
        assert list(example.prompt_ids) == ENCODER.prompt_ids(example.prompt, chat_template=False)


def test_no_question_stands_among_its_own_solved_examples_and_each_has_as_many(tmp_path: Path) -> None:
    # Solved examples come from the measured file itself: some of the questions are among the chosen four.
    found = measured(tmp_path, rows(6))
    headers = [(set(shown(example)[0]), shown(example)[1]) for example in found]
    for header, question in headers:
        assert len(header) == 3
        assert not any(line.startswith(question) for line in header)
    pool = {line for header, _ in headers for line in header}
    assert len(pool) == 4  # three, and one to stand in
    assert sum(any(line.startswith(question) for line in pool) for _, question in headers) == 4


def test_a_question_under_another_id_and_with_another_answer_is_still_the_same_question(tmp_path: Path) -> None:
    renamed = [{"id": f"other-{n}", "q": row["q"], "a": "something else"} for n, row in enumerate(rows(4))]
    for example in measured(tmp_path, rows(4), solved=renamed):
        header, question = shown(example)
        assert len(header) == 3
        assert not any(line.startswith(question) for line in header)


def test_the_solved_examples_are_the_same_whatever_the_order_of_their_file(tmp_path: Path) -> None:
    content = rows(30)
    first = measured(tmp_path / "a", rows(5), solved=content)
    random.Random(3).shuffle(content)
    assert measured(tmp_path / "b", rows(5), solved=content) == first
    assert measured(tmp_path / "c", rows(5), solved=content + content) == first
    headers = {tuple(shown(example)[0]) for example in measured(tmp_path / "d", rows(60)[30:], solved=content)}
    assert len(headers) == 1  # one header for all questions, none of which is in it


def test_more_solved_examples_begin_with_the_fewer(tmp_path: Path) -> None:
    few = measured(tmp_path / "few", rows(60)[30:], solved=rows(30), num_examples=2)
    many = measured(tmp_path / "many", rows(60)[30:], solved=rows(30), num_examples=5)
    assert shown(many[0])[0][:2] == shown(few[0])[0]


@pytest.mark.parametrize("num_different", [1, 3])
def test_too_few_solved_examples_are_told_in_one_line(tmp_path: Path, num_different: int) -> None:
    # The same question twice is one question.
    assert refused(tmp_path, rows(4), solved=rows(num_different) + rows(1)) == (
        f"solved/rows.jsonl: {num_different} different questions: wanted 4 for 3 in front of each prompt of quiz, "
        "so that none stands in front of itself."
    )


def test_candidates_of_a_choice_stay_as_they_are(tmp_path: Path) -> None:
    content = [{**row, "a": "yes" if n % 2 else "no"} for n, row in enumerate(rows(8))]
    choice = {"kind": "choice", "choices": ["yes", "no"], "max_new_tokens": 48}
    for example in measured(tmp_path, content, **choice):
        assert example.candidates == (" yes", " no")
        assert example.target in example.candidates
        assert len(shown(example)[0]) == 3


def test_a_prompt_that_grows_over_the_context_is_left_out(tmp_path: Path) -> None:
    task = {**QUESTION, "few_shot": {"data": solved_file(tmp_path / "solved", rows(6)), "num_examples": 3}}
    with pytest.raises(DataError, match="no example of quiz fits"):
        prepared(tmp_path, rows(6), task, context_tokens=60)
    assert prepared(tmp_path, rows(6), QUESTION, context_tokens=60).data[0].num_dropped_overlength == 0


def test_another_prompt_is_another_hash(tmp_path: Path) -> None:
    one = measured(tmp_path / "one", rows(4), solved=rows(30), num_examples=1)
    two = measured(tmp_path / "two", rows(4), solved=rows(30), num_examples=2)
    assert not {example.prompt_sha256 for example in one} & {example.prompt_sha256 for example in two}


def test_without_a_section_an_example_is_as_it_was() -> None:
    example = Rendered("id", "p", "r", bare_prompt="p")
    assert with_solved(example, [], None) is example
    section = FewShotSection(data="d", num_examples=1, separator="|")
    others = [replace(example, prompt="x", bare_prompt="x"), replace(example, prompt="y", bare_prompt="y")]
    assert with_solved(example, [example, *others], section).prompt == "xr|p"


def grouped(folder: Path, content: list[dict[str, Any]]) -> list[EvaluationExample]:
    return prepared(folder, content, {**QUESTION, "cluster_column": "passage"}).data[0].examples


def test_the_cluster_of_an_example_is_its_column_as_text_and_survives_the_cache(tmp_path: Path) -> None:
    content = [{**row, "passage": n // 2 if n < 4 else "other"} for n, row in enumerate(rows(6))]
    wanted = {"row-0": "0", "row-1": "0", "row-2": "1", "row-3": "1", "row-4": "other", "row-5": "other"}
    for _ in range(2):
        assert {one.example_id: one.cluster for one in grouped(tmp_path, content)} == wanted
    assert {one.cluster for one in prepared(tmp_path, content, QUESTION).data[0].examples} == {None}


@pytest.mark.parametrize("change", [{}, {"passage": None}])
def test_a_row_without_a_cluster_is_told_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    content = [{**row, "passage": "x"} for row in rows(3)]
    content[1] = {**rows(3)[1], **change}
    with pytest.raises(DataError) as caught:
        grouped(tmp_path, content)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "rows.jsonl:2: no column 'passage' (cluster_column); name the group of each row."
    )


def test_a_group_called_0_or_nothing_is_a_group(tmp_path: Path) -> None:
    content = [{**row, "passage": value} for row, value in zip(rows(3), (0, "", False), strict=True)]
    found = {one.example_id: one.cluster for one in grouped(tmp_path, content)}
    assert found == {"row-0": "0", "row-1": "", "row-2": "False"}

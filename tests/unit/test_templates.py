"""Rows to words: named formats, several templates by id, and the content that says which example it is."""

from collections import Counter

import pytest

from trainer.config.data_schema import FORMATS, TaskSection, TemplateSection
from trainer.config.errors import DataError
from trainer.data.templates import Rendered, TaskTemplates

TWO = (
    TemplateSection(prompt="Good or bad? {{ text }}", response=" {{ label }}"),
    TemplateSection(prompt="{{ text }} This is", response=" {{ label }}"),
)


def rendered(row: dict[str, object], **fields: object) -> Rendered:
    task = TaskSection.model_validate({"train": "t.jsonl", "heldout": "h.jsonl", **fields})
    return TaskTemplates("quiz", task.all_templates).render(row, where="t.jsonl:1")


@pytest.mark.parametrize(
    ("kind", "row", "prompt", "response"),
    [
        ("instruction", {"instruction": "Add.", "input": "1 + 1", "output": "2"}, "Add.\n1 + 1\n", "2"),
        ("instruction", {"instruction": "Say hello.", "output": "hello"}, "Say hello.\n", "hello"),
        ("completion", {"prompt": "One, two,", "completion": " three"}, "One, two,", " three"),
        ("text", {"text": "Prose."}, "", "Prose."),
        ("labelled", {"text": "A warm film.", "label": "positive"}, "A warm film.\nLabel:", " positive"),
        (
            "ner",
            {"text": "Bonn lies on the Rhine.", "entities": "Bonn; Rhine"},
            "List the named entities.\nBonn lies on the Rhine.\nEntities:",
            " Bonn; Rhine",
        ),
        (
            "translation",
            {"source": "bread", "target": "pan", "language": "Spanish"},
            "Translate into Spanish.\nbread\nTranslation:",
            " pan",
        ),
    ],
)
def test_a_named_format_knows_its_columns(kind: str, row: dict[str, object], prompt: str, response: str) -> None:
    found = rendered(row, format=kind)
    assert (found.prompt, found.response) == (prompt, response)


def test_every_named_format_is_tested_above() -> None:
    assert set(FORMATS) == {"instruction", "completion", "text", "labelled", "ner", "translation"}


def test_a_column_that_a_format_needs_is_told_with_those_that_are_there() -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:1: missing column output, .* Columns here: instruction\."):
        rendered({"instruction": "Add."}, format="instruction")


def test_one_of_several_templates_follows_from_the_id_alone() -> None:
    templates = TaskTemplates("quiz", TWO)
    rows = [{"id": str(n), "text": f"film {n}", "label": "good"} for n in range(400)]
    once = [templates.render(row, where="x") for row in rows]
    again = [TaskTemplates("quiz", TWO).render(row, where="y") for row in reversed(rows)]
    assert once == again[::-1]
    # A fair coin of 400 throws has a standard deviation of 10: 200 +- 5 deviations.
    starts = Counter(example.prompt.startswith("Good or bad?") for example in once)
    assert 150 < starts[True] < 250


def test_id_and_content_of_an_example_do_not_depend_on_its_template() -> None:
    row = {"text": "a film", "label": "good"}
    ids = {TaskTemplates("quiz", templates).render(row, where="x").example_id for templates in (TWO, TWO[:1])}
    assert len(ids) == 1
    assert TaskTemplates("quiz", TWO).render(row, where="x").content == " a film\n good"


def test_the_bare_prompt_is_what_the_columns_say() -> None:
    found = rendered({"text": "A warm film.", "label": "positive"}, format="labelled")
    assert (found.bare_prompt.strip(), found.content.split()) == ("A warm film.", ["A", "warm", "film.", "positive"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "needs a `response`"),
        ({"prompt": "p"}, "needs a `response`"),
        ({"format": "text", "response": "r"}, "format: text brings its own templates"),
        ({"templates": [{"response": "r"}], "prompt": "p"}, "`templates` and `prompt` are both given"),
    ],
)
def test_a_task_is_put_into_words_in_one_way(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSection.model_validate({"train": "t.jsonl", **fields})

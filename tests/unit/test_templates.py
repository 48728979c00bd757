"""Rows to words: named formats, several templates by id, and the content that says which example it is."""

from collections import Counter
from dataclasses import replace

import pytest

from trainer.config.data_schema import FORMATS, TaskSection, TemplateSection
from trainer.config.errors import DataError
from trainer.data.chat import Message
from trainer.data.examples import renderer
from trainer.data.templates import Rendered, TaskTemplates

TWO = (
    TemplateSection(prompt="Good or bad? {{ text }}", response=" {{ label }}"),
    TemplateSection(prompt="{{ text }} This is", response=" {{ label }}"),
)


CHAT = [
    {"role": role, "content": content}
    for role, content in (
        ("system", "Be brief."),
        ("user", "Hello."),
        ("assistant", "Hi."),
        ("user", "Bye."),
        ("assistant", "So long."),
    )
]


def rendered(row: dict[str, object], **fields: object) -> Rendered:
    task = TaskSection.model_validate({"train": "t.jsonl", "heldout": "h.jsonl", **fields})
    return renderer("quiz", task)(row, where="t.jsonl:1")


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
        ("chat", {"messages": CHAT}, "system: Be brief.\nuser: Hello.\nassistant: Hi.\nuser: Bye.\n", "So long."),
    ],
)
def test_a_named_format_knows_its_columns(kind: str, row: dict[str, object], prompt: str, response: str) -> None:
    found = rendered(row, format=kind)
    assert (found.prompt, found.response) == (prompt, response)


def test_every_named_format_is_tested_above() -> None:
    assert set(FORMATS) == {"instruction", "completion", "text", "labelled", "ner", "translation", "chat"}


def test_a_column_that_a_format_needs_is_told_with_those_that_are_there() -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:1: missing column output, .* Columns here: instruction\."):
        rendered({"instruction": "Add."}, format="instruction")
    with pytest.raises(
        DataError, match=r"1: missing column messages, .*\.format chat reads\. Columns here: id, text\.$"
    ):
        rendered({"text": "Hi.", "id": 3}, format="chat")


def test_a_conversation_is_kept_message_by_message_and_told_apart_by_all_that_is_said() -> None:
    found = rendered({"messages": CHAT}, format="chat")
    assert found.messages == tuple(Message(turn["role"], turn["content"]) for turn in CHAT)
    assert found.bare_prompt == "Be brief.\nHello.\nHi.\nBye."
    assert found.content == "Be brief.\nHello.\nHi.\nBye.\nSo long."
    other = rendered({"messages": [{"role": "user", "content": "Bye."}, *CHAT[-1:]]}, format="chat")
    assert len({found.example_id, other.example_id}) == 2
    assert rendered({"messages": CHAT, "id": 7}, format="chat") == replace(found, example_id="7")


def test_one_of_several_templates_follows_from_the_id_alone() -> None:
    templates = TaskTemplates("quiz", TWO)
    rows = [{"id": str(n), "text": f"film {n}", "label": "good"} for n in range(400)]
    once = [templates.render(row, where="x") for row in rows]
    again = [TaskTemplates("quiz", TWO).render(row, where="y") for row in reversed(rows)]
    assert once == [replace(example, where="x") for example in again[::-1]]
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
        ({"format": "chat", "prompt": "p"}, "format: chat brings its own templates"),
        ({"format": "text", "train_on": "last"}, "`train_on` belongs to format: chat"),
    ],
)
def test_a_task_is_put_into_words_in_one_way(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSection.model_validate({"train": "t.jsonl", **fields})

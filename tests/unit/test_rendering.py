"""A row and a template become prompt and response; each complaint says which file, which line and which column."""

import json

import pytest

from trainer.config.errors import DataError
from trainer.data.templates import Rendered, TaskTemplate


def template(*, prompt: str = "{{ text }}", response: str = "{{ label }}") -> TaskTemplate:
    return TaskTemplate(task="reviews", prompt=prompt, response=response)


def refused_row(prompt: str, row: dict[str, object]) -> str:
    with pytest.raises(DataError) as caught:
        template(prompt=prompt, response="x").render(row, where="rows.jsonl:7")
    return str(caught.value)


def test_a_row_is_rendered_into_prompt_and_response_byte_by_byte() -> None:
    row = {"id": 5, "text": " a & <b>\n", "label": "good"}
    rendered = template(prompt="Review: {{ text }}\nIs it good?\n", response=" {{ label }}\n").render(row, where="f:1")
    assert rendered == Rendered("5", "Review:  a & <b>\n\nIs it good?\n", " good\n", "  a & <b>\n ", "f:1")


def test_a_row_without_id_is_named_by_its_content_wherever_the_file_lies() -> None:
    # The first 16 digits of sha256 of the bytes "t", 0, "l".
    ids = {template().render({"text": "t", "label": "l"}, where=where).example_id for where in ("a:1", "b:2")}
    assert ids == {"656b52addf38e6cb"}


def test_null_is_refused_and_never_taught_as_a_word() -> None:
    message = refused_row("{{ text }}", {"text": None, "label": "l"})
    assert message.startswith(
        "rows.jsonl:7: data.tasks.reviews.prompt cannot be rendered: a column that it shows is null"
    )


def test_a_missing_column_is_named_with_file_line_and_the_columns_that_are_there() -> None:
    assert refused_row("{{ text }}", {"label": "l", "body": "t"}) == (
        "rows.jsonl:7: missing column text, which data.tasks.reviews.prompt uses. Columns here: body, label."
    )


def test_several_missing_columns_are_named_together() -> None:
    assert "missing column a, b, which data.tasks.reviews.prompt" in refused_row("{{ b }}{{ a }}{{ c }}", {"c": 1})


def test_a_missing_nested_value_is_not_taken_for_an_empty_text() -> None:
    message = refused_row("{{ meta.title }}", {"meta": {"name": "n"}})
    assert message.startswith("rows.jsonl:7: missing ")
    assert message.endswith(", which data.tasks.reviews.prompt uses. Columns here: meta.")


def test_an_optional_column_may_be_missing_where_the_template_asks() -> None:
    optional = template(prompt="{% if title is defined %}{{ title }}: {% endif %}{{ text }}")
    assert optional.render({"text": "t", "label": "l"}, where="f:1").prompt == "t"
    assert optional.render({"text": "t", "label": "l", "title": "T"}, where="f:1").prompt == "T: t"


def test_a_function_of_jinja_is_not_called_a_missing_column() -> None:
    assert "missing column text, which" in refused_row("{% for i in range(2) %}{{ text }}{% endfor %}", {"label": "l"})


@pytest.mark.parametrize("response", ["{{ label }}", "  {{ label }}\n"])
@pytest.mark.parametrize("label", ["", " ", "\n\t"])
def test_an_empty_response_is_refused_with_its_place(response: str, label: str) -> None:
    with pytest.raises(DataError) as caught:
        template(response=response).render({"text": "t", "label": label}, where="rows.jsonl:7")
    assert str(caught.value) == (
        "rows.jsonl:7: the response of task reviews is empty: nothing to learn from. Remove the row."
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ text", "unexpected end of template, expected 'end of print statement'."),
        ("{% if text %}", "Unexpected end of template"),
        ("{{ text | louder }}", "No filter named 'louder'."),
    ],
)
def test_a_template_that_is_not_jinja_is_refused_with_its_key(source: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        template(response=source)
    assert str(caught.value).startswith(f"data.tasks.reviews.response: not a Jinja template: {reason}")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ text.__class__.__base__.__subclasses__() }}",
        "{{ text['__class__'] }}",
        "{{ text | attr('__class__') }}",
        "{{ range.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ things.append(4) }}",
        "{% set _ = things.clear() %}",
    ],
)
def test_a_template_cannot_reach_out_of_its_row(attack: str) -> None:
    row = {"text": "t", "things": [1, 2]}
    message = refused_row(attack, row)
    assert message.startswith("rows.jsonl:7: ")
    assert "class 'str'" not in message
    assert row == {"text": "t", "things": [1, 2]}


@pytest.mark.parametrize("source", ["{{ text + 1 }}", "{{ 1 / number }}", "{{ number | join(',') }}"])
def test_a_template_that_does_not_fit_the_values_of_a_row_is_refused_with_its_place(source: str) -> None:
    assert refused_row(source, {"text": "t", "number": 0}).startswith(
        "rows.jsonl:7: data.tasks.reviews.prompt cannot be rendered: "
    )


def test_numbers_and_lists_are_rendered_as_jinja_does() -> None:
    rendered = template(prompt="{{ n }} {{ names | join(', ') }}").render(
        json.loads('{"n": 1.5, "names": ["a", "b"], "label": "l"}'), where="f:1"
    )
    assert rendered.prompt == "1.5 a, b"

"""From files to texts: each complaint says which file, which line, what was found and what was wanted."""

import json
from pathlib import Path

import pytest

from trainer.config.errors import DataError
from trainer.data.sources import MAX_REPORTED_LINES, as_dataset, read_jsonl
from trainer.data.templates import Rendered, TaskTemplate
from trainer.data.tokenize import render_task


def jsonl(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    return str(caught.value)


def template(*, prompt: str = "{{ text }}", response: str = "{{ label }}") -> TaskTemplate:
    return TaskTemplate(task="reviews", prompt=prompt, response=response)


def refused_row(prompt: str, row: dict[str, object]) -> str:
    with pytest.raises(DataError) as caught:
        template(prompt=prompt, response="x").render(row, where="rows.jsonl:7")
    return str(caught.value)


def test_rows_are_read_by_the_number_of_their_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"a": 1}', "", "   ", '{"a": "\u00e9"}', "")
    assert read_jsonl(path) == {1: {"a": 1}, 4: {"a": "\u00e9"}}


def test_the_last_line_needs_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}', encoding="utf-8")
    assert read_jsonl(path) == {1: {"a": 1}, 2: {"a": 2}}


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"a": "x\u2028y\u0085z"}', '{"a": 2}')
    assert read_jsonl(path) == {1: {"a": "x\u2028y\u0085z"}, 2: {"a": 2}}


def test_a_malformed_line_is_named_with_its_number_and_reason(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"a": 1}', "", '{"a": 1')
    assert complaint(path) == (
        f"{path}:3: malformed JSON: Expecting ',' delimiter: line 2 column 1 (char 8). Wanted one JSON object a line."
    )


def test_all_malformed_lines_are_named_at_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path, "{", '{"a": 1}', "[1]", "oops")
    lines = complaint(path).splitlines()
    assert [line.removeprefix(f"{path}:").split(":")[0] for line in lines] == ["1", "3", "4"]


@pytest.mark.parametrize(
    ("num_bad", "more"), [(10, []), (11, ["(1 more malformed lines)"]), (25, ["(15 more malformed lines)"])]
)
def test_at_most_ten_malformed_lines_are_named_and_the_others_counted(
    tmp_path: Path, num_bad: int, more: list[str]
) -> None:
    assert MAX_REPORTED_LINES == 10
    path = jsonl(tmp_path, *["oops"] * num_bad)
    lines = complaint(path).splitlines()
    assert all(line.startswith(f"{path}:{number}: malformed") for number, line in enumerate(lines[:10], start=1))
    assert lines[10:] == more


@pytest.mark.parametrize(
    ("line", "found"), [("[1, 2]", "list"), ('"text"', "str"), ("3", "int"), ("null", "NoneType"), ("true", "bool")]
)
def test_a_line_that_is_not_an_object_is_refused(tmp_path: Path, line: str, found: str) -> None:
    path = jsonl(tmp_path, '{"a": 1}', line)
    assert complaint(path) == f"{path}:2: found a JSON {found}, wanted an object with columns."


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
def test_a_file_without_rows_is_an_empty_data_set(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    assert complaint(path) == f"{path}: empty data set: no JSON object in the file. Wanted one object a line."


def test_a_missing_file_and_a_folder_are_told_in_one_line(tmp_path: Path) -> None:
    assert complaint(tmp_path / "no.jsonl") == f"{tmp_path / 'no.jsonl'}: cannot be read (No such file or directory)."
    assert complaint(tmp_path) == f"{tmp_path}: cannot be read (Is a directory)."


def test_a_file_that_is_not_utf8_is_told_with_its_first_wrong_byte(tmp_path: Path) -> None:
    # {"a": " are 7 bytes: the eighth, at offset 7, is e acute in Latin-1.
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "\xe9"}\n')
    assert complaint(path) == f"{path}: not UTF-8 text (invalid continuation byte at byte 7). Convert it first."


def test_the_offset_of_a_wrong_byte_is_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    # A first line of 20010 bytes with its line end, then 7 bytes before the wrong one.
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 20000 + b'"}\n' + b'{"a": "\xff"}\n')
    assert "at byte 20017)" in complaint(path)


def test_rows_become_a_table(tmp_path: Path) -> None:
    table = as_dataset([{"ids": [1, 2], "n": 1}, {"ids": [3], "n": 0}])
    assert (len(table), table[0], table[1]) == (2, {"ids": [1, 2], "n": 1}, {"ids": [3], "n": 0})


def test_a_row_is_rendered_into_prompt_and_response_byte_by_byte() -> None:
    row = {"id": 5, "text": " a & <b>\n", "label": "good"}
    rendered = template(prompt="Review: {{ text }}\nIs it good?\n", response=" {{ label }}\n").render(row, where="f:1")
    assert rendered == Rendered("5", "Review:  a & <b>\n\nIs it good?\n", " good\n")


def test_a_row_without_id_is_named_by_its_content_wherever_the_file_lies(tmp_path: Path) -> None:
    # The first 16 digits of sha256 of the bytes "t", 0, "l".
    path = jsonl(tmp_path, "", '{"text": "t", "label": "l"}')
    assert render_task(str(path), template()) == [Rendered("656b52addf38e6cb", "t", "l")]


def test_null_is_refused_and_never_taught_as_a_word(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"text": null, "label": "l"}')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*cannot be rendered: a column that it shows is null"):
        render_task(str(path), template())


def test_a_missing_column_is_named_with_file_line_and_the_columns_that_are_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"text": "t", "label": "l"}', "", '{"label": "l", "body": "t"}')
    with pytest.raises(DataError) as caught:
        render_task(str(path), template())
    assert str(caught.value) == (
        f"{path}:3: missing column text, which data.tasks.reviews.prompt uses. Columns here: body, label."
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

"""What a JSON text must be to hold examples: objects that are clear, made of characters, and not too deep.

Pure: each complaint is a ValueError without its place, which the reader of the file knows.
"""

import json
from collections import Counter
from typing import Any

TOO_DEEP = "malformed JSON: nested too deeply to be read. Remove the row."


def list_of_objects(document: Any) -> list[Any]:
    """The list that a JSON document is, or the only list of objects in it; ValueError where there is none."""
    if isinstance(document, list):
        return document
    wanted = "wanted an array of objects, or one object with exactly one list of objects in it."
    if not isinstance(document, dict):
        raise ValueError(f"found a JSON {type(document).__name__}, {wanted}")
    if isinstance(document, _Ambiguous):
        raise ValueError(f"the key {document.repeated!r} stands twice in the outermost object. Keep one of them.")
    lists = {key: value for key, value in document.items() if isinstance(value, list)}
    tables = [key for key, value in lists.items() if any(isinstance(element, dict) for element in value)]
    if len(tables) != 1:
        names = f" ({', '.join(tables)})" if tables else ""
        raise ValueError(f"found a JSON object with {len(tables)} lists of objects{names}, {wanted}")
    return lists[tables[0]]


class _Ambiguous(dict[str, Any]):
    """A JSON object in which a key stands twice: which of the values was meant nobody knows."""

    repeated = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    ambiguous = _Ambiguous(values)
    ambiguous.repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
    return ambiguous


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError where it is none."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def as_row(value: Any) -> dict[str, Any]:
    """A JSON value as the columns of an example; ValueError where it is no clear object of characters."""
    if not isinstance(value, dict):
        raise ValueError(f"found a JSON {type(value).__name__}, wanted an object with columns.")
    try:
        complaint = _complaint(value)
    except RecursionError:
        complaint = TOO_DEEP
    if complaint is not None:
        raise ValueError(complaint)
    return value


def _complaint(value: Any) -> str | None:
    if isinstance(value, str):
        return _half_of_a_character(value)
    if isinstance(value, _Ambiguous):
        return f"the key {value.repeated!r} stands twice in one object. Keep one of them."
    parts = (*value.keys(), *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        complaint = _complaint(part)
        if complaint is not None:
            return complaint
    return None


def _half_of_a_character(text: str) -> str | None:
    """JSON can name half of a surrogate pair, such as \\ud800: no tokenizer could encode it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"a text holds {text[error.start]!a}, half of a surrogate pair. Remove it."
    return None

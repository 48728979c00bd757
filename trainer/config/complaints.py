"""What is wrong with a configuration, in words: place, key, what was found, what was wanted, the nearest key.

Turns pydantic's findings into lines for the person who wrote the file.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Key = tuple[str, ...]


@dataclass(slots=True)
class Document:
    """A tree of plain values and, for each key path, where it was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[Key, str] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """`file:line` of the key, or of its nearest written parent."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origin:
                return self.origin[key[:length]]
        return self.origin.get((), "configuration")


@dataclass(frozen=True, slots=True)
class Complaints:
    """Explains findings about one document against one root section."""

    root: type[BaseModel]
    document: Document

    def all(self, details: Sequence[ErrorDetails]) -> str:
        """One line for each wrong key; of a union's alternatives only one is told."""
        by_key: dict[Key, list[ErrorDetails]] = {}
        for detail in details:
            by_key.setdefault(self._plain_key(detail), []).append(detail)
        return "\n".join(self._explain(key, _most_specific(found)) for key, found in by_key.items())

    def known_keys(self, key: Key) -> list[str] | None:
        """Keys allowed under a path; None where any name is (the names of tasks)."""
        section = self._section_at(key)
        if section is not None:
            return list(section.model_fields)
        return None if _is_task_table(key) else []

    def unknown_key(self, key: Key, known: Sequence[str]) -> str:
        """The complaint about a key that does not exist, with the nearest one that does."""
        close = difflib.get_close_matches(key[-1], known, n=1, cutoff=0.5)
        nearest = self._paths_ending_in(key[-1]) or [".".join((*key[:-1], name)) for name in close]
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        keys = f" Keys here: {', '.join(sorted(known))}." if known else ""
        return f"{'.'.join(key)}: unknown key.{hint}{keys}"

    def _explain(self, key: Key, detail: ErrorDetails) -> str:
        place, dotted = self.document.where(key), ".".join(key) or "configuration"
        match detail["type"]:
            case "extra_forbidden":
                return f"{place}: {self.unknown_key(key, self.known_keys(key[:-1]) or [])}"
            case "missing":
                return f"{self.document.where(key[:-1])}: {dotted}: missing. {self._describe(key)}".rstrip()
            case "value_error":
                return f"{place}: {dotted}: {detail['ctx']['error']}."
        found = detail["input"] if not isinstance(detail["input"], dict | list) else type(detail["input"]).__name__
        return f"{place}: {dotted}: found {found!r}, wanted {self._wanted(key, detail)}. {self._describe(key)}".rstrip()

    def _wanted(self, key: Key, detail: ErrorDetails) -> str:
        match detail["type"]:
            case "string_pattern_mismatch":
                return "a name of lower-case letters, digits, - and _"
            case "model_type" | "dict_type":
                return "a mapping of keys"
            case "literal_error":
                return f"one of {', '.join(self._words_of(key))}"
        words = self._words_of(key)
        return detail["msg"].removeprefix("Input should be ") + (f" (or {' or '.join(words)})" if words else "")

    def _words_of(self, key: Key) -> list[str]:
        """The words that a field takes, alone or beside a number, such as auto."""
        section = self._section_at(key[:-1])
        info = section.model_fields.get(key[-1]) if section else None
        annotations = (info.annotation, *get_args(info.annotation)) if info else ()
        literals = [annotation for annotation in annotations if get_origin(annotation) is Literal]
        return [str(word) for literal in literals for word in get_args(literal)]

    def _describe(self, key: Key) -> str:
        section = self._section_at(key[:-1])
        info = section.model_fields.get(key[-1]) if section else None
        return f"({' '.join(info.description.split())})" if info and info.description else ""

    def _section_at(self, key: Key) -> type[BaseModel] | None:
        """The section class that a key path names; None where the path leaves the schema (a task's name)."""
        section = self.root
        remaining = list(key)
        while remaining:
            part = remaining.pop(0)
            inner = _model_in(section.model_fields[part].annotation) if part in section.model_fields else None
            if inner is None:
                return None
            if part == "tasks":  # a mapping from names to sections: the name itself is free
                if not remaining:
                    return None
                remaining.pop(0)
            section = inner
        return section

    def _plain_key(self, detail: ErrorDetails) -> Key:
        """The key path without pydantic's union tags."""
        key: Key = ()
        for part in map(str, detail["loc"]):
            if part == "[key]" or (self._section_at(key) is None and not _is_task_table(key)):
                break
            key = (*key, part)
        return key

    def _paths_ending_in(self, name: str) -> list[str]:
        """The same key in another section: for somebody who forgot the section's name."""
        sections = {part: _model_in(info.annotation) for part, info in self.root.model_fields.items()}
        return [f"{part}.{name}" for part, section in sections.items() if section and name in section.model_fields]


def _most_specific(details: Sequence[ErrorDetails]) -> ErrorDetails:
    """Of a union's complaints the one that went deepest: about an entry of a list, not about the word beside it."""
    return max(details, key=lambda detail: (len(detail["loc"]), detail["type"] != "literal_error"))


def _is_task_table(key: Key) -> bool:
    return key[-1:] == ("tasks",)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)

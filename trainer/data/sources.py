"""Rows of a JSONL file as a `datasets.Dataset`, or every malformed line at once, with file and line number."""

import json
from pathlib import Path
from typing import Any

import datasets

from trainer.config.errors import DataError

MAX_REPORTED_LINES = 10


def read_jsonl(path: str | Path) -> dict[int, dict[str, Any]]:
    """Read one JSON object a line, by line number; blank lines are passed over.

    Raises:
        DataError: the file is missing or empty, or lines are not JSON objects (up to ten are named).
    """
    rows: dict[int, dict[str, Any]] = {}
    bad: list[str] = []
    try:
        offset = 0
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        rows[number] = _parse_row(line)
                except UnicodeDecodeError as error:
                    place = f"{error.reason} at byte {offset + error.start}"
                    raise DataError(f"{path}: not UTF-8 text ({place}). Convert it first.") from None
                except ValueError as error:
                    bad.append(f"{path}:{number}: {error}")
                offset += len(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    if bad:
        more = f"\n({len(bad) - MAX_REPORTED_LINES} more malformed lines)" if len(bad) > MAX_REPORTED_LINES else ""
        raise DataError("\n".join(bad[:MAX_REPORTED_LINES]) + more)
    if not rows:
        raise DataError(f"{path}: empty data set: no JSON object in the file. Wanted one object a line.")
    return rows


def _parse_row(line: bytes) -> dict[str, Any]:
    text = line.decode("utf-8")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"malformed JSON: {error}. Wanted one JSON object a line.") from None
    if not isinstance(value, dict):
        raise ValueError(f"found a JSON {type(value).__name__}, wanted an object with columns.")
    return value


def as_dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """Rows as an Arrow table."""
    return datasets.Dataset.from_list(rows)

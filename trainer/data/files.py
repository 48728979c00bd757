"""Files of examples, record by record: JSONL, JSON, CSV, TSV, Parquet and plain text.

A record that is bad is told to `refuse` and passed over; a file that is damaged as
a whole raises. No file but a JSON array is ever held whole. Knows nothing of tasks.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from trainer.config.errors import DataError
from trainer.data.json_rows import as_row, list_of_objects, parse_json

Record = tuple[str, dict[str, Any]]
"""Where an example stands, and its columns."""

Refuse = Callable[[str], None]
Kind = Literal["jsonl", "json", "csv", "tsv", "text", "parquet"]

ENDINGS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
}
WANTED_ENDINGS = f"{', '.join(ENDINGS)}, and .gz after each but the last"
BATCH_ROWS = 256
LONGEST_CSV_FIELD = 2**24
"""Characters. Documents are longer than the 131072 of the csv module; a quote never closed must not take a file in."""

NUMBER = re.compile(r"[-+]?[0-9.,]+([eE][-+]?[0-9]+)?")
"""A column called 3.5 is the first row of a table without a header."""

DISGUISES = {
    b"\x1f\x8b": "found gzip, wanted text. Let its name end in .gz",
    b"PAR1": "found Parquet, wanted text. Let its name end in .parquet",
    b"PK\x03\x04": "found a zip archive, wanted text. Unpack it first",
    b"\x28\xb5\x2f\xfd": "found zstd, wanted text. Unpack it first",
    b"\xff\xfe": "found UTF-16, wanted UTF-8. Convert it first",
    b"\xfe\xff": "found UTF-16, wanted UTF-8. Convert it first",
}


def kind_of(path: Path) -> Kind | None:
    """What a file's ending says about it; None where it is no kind that can be read."""
    name = path.name.lower()
    kind = ENDINGS.get(Path(name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def read_file(path: Path, refuse: Refuse) -> Iterator[Record]:
    """The good records of one file; each bad one is told to `refuse`.

    Raises:
        DataError: the file is missing, damaged, of no known kind, or holds no record at all.
    """
    num_records = 0

    def count_and_refuse(message: str) -> None:
        nonlocal num_records
        num_records += 1
        refuse(message)

    try:
        _refuse_disguise(path)
        for record in _records(path, count_and_refuse):
            num_records += 1
            yield record
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if num_records == 0:
        raise DataError(f"{path}: empty data set: no example in the file. Fill it, or leave it out.")


def _records(path: Path, refuse: Refuse) -> Iterator[Record]:
    match kind_of(path):
        case "jsonl":
            return _json_lines(path, refuse)
        case "json":
            return _json_document(path, refuse)
        case "csv":
            return _table(path, ",", refuse)
        case "tsv":
            return _table(path, "\t", refuse)
        case "text":
            return _paragraphs(path, refuse)
        case "parquet":
            return _parquet(path)
        case None:
            raise DataError(f"{path}: unknown file ending {path.suffix!r}. Wanted one of {WANTED_ENDINGS}.")


def _refuse_disguise(path: Path) -> None:
    with path.open("rb") as file:
        beginning = file.read(64)
    if beginning.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: found a pointer of Git LFS, wanted the data itself. Fetch it with `git lfs pull`.")
    if path.suffix.lower() not in (".gz", ".parquet"):
        for magic, complaint in DISGUISES.items():
            if beginning.startswith(magic):
                raise DataError(f"{path}: {complaint}.")


class _Lines:
    """The lines of a text file, with the number of the last one; a byte order mark is passed over."""

    def __init__(self, path: Path) -> None:
        self.number = 0
        self.fault: str | None = None
        """Why a line since the last `check` was not UTF-8."""

        self._path = path

    def __iter__(self) -> Iterator[str]:
        offset = 0
        try:
            with self._open() as file:
                for line in file:
                    self.number += 1
                    yield self._decode(line, offset=offset)
                    offset += len(line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            reason = str(error).rstrip(".")
            raise DataError(
                f"{self._path}: damaged gzip after line {self.number} ({reason}). Copy or compress it anew."
            ) from None

    def check(self) -> None:
        """Raise ValueError where a line since the last check was not UTF-8."""
        fault, self.fault = self.fault, None
        if fault is not None:
            raise ValueError(fault)

    def _open(self) -> gzip.GzipFile | io.BufferedReader:
        return gzip.open(self._path, "rb") if self._path.suffix.lower() == ".gz" else self._path.open("rb")

    def _decode(self, line: bytes, *, offset: int) -> str:
        mark = len(codecs.BOM_UTF8) if self.number == 1 and line.startswith(codecs.BOM_UTF8) else 0
        try:
            return line[mark:].decode("utf-8")
        except UnicodeDecodeError as error:
            place = f"{error.reason} at byte {offset + mark + error.start}"
            self.fault = self.fault or f"not UTF-8 text ({place}). Convert the file first."
            return line[mark:].decode("utf-8", errors="replace")


def _json_lines(path: Path, refuse: Refuse) -> Iterator[Record]:
    lines = _Lines(path)
    for text in lines:
        where = f"{path}:{lines.number}"
        try:
            lines.check()
            values = as_row(parse_json(text.rstrip("\r\n"))) if text.strip() else None
        except json.JSONDecodeError as error:
            found = f"malformed JSON: {error.msg} at column {error.colno}"
            refuse(f"{where}: {found}. Wanted one JSON object a line.")
        except ValueError as error:
            refuse(f"{where}: {error}")
        else:
            if values is not None:
                yield where, values


def _json_document(path: Path, refuse: Refuse) -> Iterator[Record]:
    lines = _Lines(path)
    text = "".join(lines)
    if not text.strip():
        return
    try:
        lines.check()
        elements = list_of_objects(parse_json(text))
    except json.JSONDecodeError as error:
        hint = " Is it one object a line? Then let its name end in .jsonl." if error.msg == "Extra data" else ""
        place = f"{error.msg} at column {error.colno}"
        raise DataError(f"{path}:{error.lineno}: malformed JSON: {place}. Wanted an array of objects.{hint}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    for number, element in enumerate(elements, start=1):
        where = f"{path}: row {number}"
        try:
            values = as_row(element)
        except ValueError as error:
            refuse(f"{where}: {error}")
        else:
            yield where, values


def _table(path: Path, separator: str, refuse: Refuse) -> Iterator[Record]:
    csv.field_size_limit(LONGEST_CSV_FIELD)
    lines = _Lines(path)
    rows = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        first = lines.number + 1
        try:
            fields = next(rows, None)
            lines.check()
            if fields is None:
                return
            values = _table_row(fields, header)
            header = header or _header(fields, separator=separator)
        except DataError:
            raise
        except (csv.Error, ValueError) as error:
            span = f"lines {first} to {lines.number}: " if lines.number > first else ""
            message = f"{path}:{first}: {span}{str(error).rstrip('.')}."
            if str(error) == "unexpected end of data":
                message = (
                    f"{path}:{first}: a quote is never closed to the end of the file, line {lines.number}. Close it."
                )
            if not header or str(error) == "unexpected end of data":
                raise DataError(message) from None
            lines.fault = None
            refuse(message)
        else:
            if values:
                yield f"{path}:{first}", values


def _table_row(fields: list[str], header: list[str]) -> dict[str, str]:
    """Columns of a row; empty for a blank line and for the header itself."""
    if not header or not fields:
        return {}
    if len(fields) != len(header):
        raise ValueError(
            f"found {len(fields)} fields, wanted {len(header)} ({', '.join(header)}). "
            "Put a text that holds the separator in double quotes."
        )
    return dict(zip(header, fields, strict=True))


def _header(fields: list[str], *, separator: str) -> list[str]:
    for number, name in enumerate(fields, start=1):
        if not name.strip() or NUMBER.fullmatch(name.strip()):
            raise ValueError(f"column {number} of the header is {name!r}, wanted a name. Give every column a name.")
    repeated = [name for name, times in Counter(fields).items() if times > 1]
    if repeated:
        raise ValueError(f"the column {repeated[0]!r} stands twice in the header. Rename one of them.")
    other = [mark for mark in ",;\t|" if len(fields) == 1 and mark != separator and mark in fields[0]]
    if other:
        raise ValueError(f"the header is separated by {other[0]!r}, wanted {separator!r}. Convert the file.")
    return fields


def _paragraphs(path: Path, refuse: Refuse) -> Iterator[Record]:
    lines = _Lines(path)
    paragraph: list[str] = []
    for text in itertools.chain(lines, ("",)):
        if text.strip():
            paragraph.append(text.rstrip("\r\n"))
        elif paragraph:
            # The empty line that ends the last paragraph has no number of its own.
            where = f"{path}:{lines.number - len(paragraph) + (text == '')}"
            try:
                lines.check()
            except ValueError as error:
                refuse(f"{where}: {error}")
            else:
                yield where, {"text": "\n".join(paragraph)}
            paragraph = []


def _parquet(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            repeated = [name for name, times in Counter(file.schema_arrow.names).items() if times > 1]
            if repeated:
                raise DataError(f"{path}: the column {repeated[0]!r} stands twice. Rename one of them.")
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", values
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DataError(f"{path}: damaged Parquet after row {number} ({reason}). Copy or write it anew.") from None

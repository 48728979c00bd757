"""Sources of examples: files, folders, patterns, hub data sets and tasks of lm-eval as one stream of rows.

Rows come one by one, so that memory does not grow with the data, and bad ones are gathered
with their places instead of ending the stream. Knows nothing of templates and tokens.
"""

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import datasets.exceptions
import huggingface_hub
import huggingface_hub.errors

from trainer.config.data_schema import HubSource, LmEvalSource, Source, describe
from trainer.config.errors import DataError
from trainer.data.files import WANTED_ENDINGS, Record, Refuse, kind_of, read_file
from trainer.data.lm_eval_source import read_task, version_of_lm_eval

MAX_NAMED = 10
"""Bad examples that a message names; the others are counted."""

UNREADABLE_ENDINGS = (".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z", ".gz", ".arrow", ".avro", ".orc", ".xlsx")
"""Data that nothing here reads. In a folder they are an error, so that no half of a data set is missed in silence."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example as it was read."""

    where: str
    """`data/x.jsonl:17`, `x.parquet: row 17` or `hub org/name train: row 17`, where lines and rows count from 1, or
    `lm-eval arc_easy: document 17`, where they count from 0 as in lm-eval's own files."""

    values: dict[str, Any]
    """Its columns. All those of CSV and TSV are text."""


class BadExamples:
    """Examples that cannot be used: gathered over all files, then refused together or counted."""

    def __init__(self, policy: Literal["error", "skip"], *, max_named: int = MAX_NAMED) -> None:
        self.count = 0
        self.messages: list[str] = []
        """The first `max_named` complaints."""

        self.num_read = 0
        """Examples that `read_rows` came across, good and bad."""

        self.policy = policy
        self.max_named = max_named

    def add(self, message: str) -> None:
        """Note one bad example; `message` begins with its place."""
        self.count += 1
        if len(self.messages) < self.max_named:
            self.messages.append(message)

    def finish(self, what: str) -> int:
        """How many examples of `what` were left out, after the last one was read.

        Raises:
            DataError: there are bad examples and they may not be skipped, or there is no other.
        """
        if self.count and self.policy == "error":
            raise DataError(self._named(what))
        if self.count and self.count >= self.num_read > 0:
            raise DataError(f"{what}: all {self.count} examples are bad, none is left:\n{self._named(what)}")
        return self.count

    def _named(self, what: str) -> str:
        hidden = self.count - len(self.messages)
        return "\n".join([*self.messages, *([f"({hidden} more bad examples in {what})"] if hidden else [])])


def read_rows(source: Source, *, columns: Mapping[str, str], bad: BadExamples) -> Iterator[Row]:
    """The good examples of a source, one by one in a fixed order. The bad ones go to `bad`: call its `finish` after.

    Args:
        source: files, folders (all data files below, by name), patterns, several of them, a hub data set, or a task of
            lm-eval.
        columns: name that a template uses: column of the source that it stands for. A column of the source that
            has the name of another one's is hidden; the others stay.
        bad: what becomes of bad examples.

    Raises:
        DataError: a file is missing, damaged, empty or of no known kind, all examples are bad and may be skipped,
            or no example has a column that `columns` names.
    """
    known: set[str] = set()
    num_good, first_complaint, count_before = 0, "", bad.count

    def refuse(message: str) -> None:
        nonlocal first_complaint
        first_complaint = first_complaint or message
        bad.num_read += 1
        bad.add(message)

    for where, values in _read_source(source, refuse):
        num_good += 1
        bad.num_read += 1
        known.update(values)
        yield Row(where, _renamed(values, columns) if columns else values)
    if not num_good and bad.policy == "skip":
        num_bad = bad.count - count_before
        raise DataError(f"{describe(source)}: all {num_bad} examples are bad, none is left. First: {first_complaint}")
    absent = sorted(set(columns.values()) - known)
    if num_good and absent:
        raise DataError(
            f"{describe(source)}: no example has column {', '.join(absent)}, which `columns` names. "
            f"Columns here: {', '.join(sorted(known))}."
        )


def hub_fingerprint(source: HubSource) -> str:
    """What a hub data set holds, as `datasets` names it: of its files and of how they are read.

    Raises:
        DataError: it is neither in the local cache nor on the hub, or cannot be read.
    """
    return str(_open_hub(source)._fingerprint)


def lm_eval_fingerprint(source: LmEvalSource) -> str:
    """SHA-256 of all that a task of lm-eval requests, and of the version of lm-eval. Its settings, its data and the
    choice of solved examples are in the requests.

    Raises:
        DataError: it cannot be read.
    """
    complaints: list[str] = []
    records = list(_read_lm_eval(source, complaints.append))
    text = json.dumps([version_of_lm_eval(), records, complaints], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """What a name is mapped to counts, and where that is missing nothing else may stand in for it."""
    rest = {name: value for name, value in values.items() if name not in columns}
    return rest | {name: values[column] for name, column in columns.items() if column in values}


def _read_source(source: Source, refuse: Refuse) -> Iterator[Record]:
    if isinstance(source, HubSource):
        yield from _read_hub(source)
        return
    if isinstance(source, LmEvalSource):
        yield from _read_lm_eval(source, refuse)
        return
    for path in list_files((source,) if isinstance(source, str) else source):
        yield from read_file(path, refuse)


def list_files(entries: tuple[str, ...]) -> list[Path]:
    """The files of all entries, in their order; what is wrong with several of them is told together.

    Raises:
        DataError: a file is missing, named twice, or of no known kind.
    """
    files: list[Path] = []
    faults: list[str] = []
    for entry in entries:
        try:
            files += _files_of(entry)
        except DataError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{entry}: cannot be read ({error.strerror}).")
    times = Counter(path.absolute() for path in files)
    faults += [f"{path}: named {n} times in one source. Name it once." for path, n in times.items() if n > 1]
    faults += [
        f"{path}: unknown file ending {path.suffix!r}. Wanted one of {WANTED_ENDINGS}."
        for path in files
        if kind_of(path) is None
    ]
    if faults:
        raise DataError("\n".join(faults))
    return files


def _files_of(entry: str) -> list[Path]:
    path = Path(entry)
    if path.is_dir():
        return _files_below(path)
    if path.exists():
        return [path]
    if not glob.has_magic(entry):
        raise DataError(f"{entry}: no such file or folder. Relative paths are looked for in {Path.cwd()}.")
    matches = [Path(match) for match in sorted(glob.glob(entry, recursive=True))]
    files = [match for match in matches if match.is_file()]
    if not files:
        found = "only folders match" if matches else "no file matches"
        raise DataError(f"{entry}: {found} this pattern. Relative patterns are looked for in {Path.cwd()}.")
    return files


def _files_below(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    seen = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = [path for path in seen if kind_of(path) is not None]
    missed = [path for path in seen if kind_of(path) is None and path.name.lower().endswith(UNREADABLE_ENDINGS)]
    if missed:
        raise DataError(
            f"{missed[0]}: data of a kind that is not read, in a folder of data. Convert it, or name the other files "
            f"by a pattern. Wanted {WANTED_ENDINGS}."
        )
    if not files:
        endings = ", ".join(sorted({path.suffix or path.name for path in seen})) or "nothing"
        raise DataError(f"{folder}: no data file in this folder (found {endings}). Wanted {WANTED_ENDINGS}.")
    return files


def _open_hub(source: HubSource) -> datasets.Dataset:
    name = describe(source)
    try:
        return _load_hub(source)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        revision = f" --revision {source.revision}" if source.revision else ""
        raise DataError(
            f"{name}: found neither in the local cache nor on the hub ({_first_line(error)}). "
            f"Where there is network: hf download --repo-type dataset {source.hub}{revision}"
        ) from None
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: cannot be read ({_first_line(error)}). Check subset, split and revision.") from None


def _read_hub(source: HubSource) -> Iterator[Record]:
    name, table = describe(source), _open_hub(source)
    if len(table) == 0:
        raise DataError(f"{name}: empty data set: no example in this split. Take another one.")
    for number, values in enumerate(table, start=1):
        yield f"{name}: row {number}", values


def _read_lm_eval(source: LmEvalSource, refuse: Refuse) -> Iterator[Record]:
    try:
        yield from read_task(source, refuse)
    except datasets.exceptions.DatasetsError as error:
        raise DataError(f"{describe(source)}: its data cannot be read ({_first_line(error)}).") from None


def _load_hub(source: HubSource) -> datasets.Dataset:
    """From the hub; without network from what `hf download` left here, or what an earlier run prepared.

    `datasets` alone would not look at what `hf download` left, and takes any prepared revision for the wanted one.
    """
    if huggingface_hub.is_offline_mode():
        try:
            return _load_snapshot(source)
        except huggingface_hub.errors.LocalEntryNotFoundError:
            if source.revision is not None:
                raise
    try:
        return datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision)
    except ConnectionError:
        return _load_snapshot(source)


def _load_snapshot(source: HubSource) -> datasets.Dataset:
    folder = huggingface_hub.snapshot_download(
        source.hub, repo_type="dataset", revision=source.revision, local_files_only=True
    )
    return datasets.load_dataset(folder, source.subset, split=source.split)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")

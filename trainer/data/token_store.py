"""The training examples of one task on disk: Arrow files that are mapped into memory, never read as a whole.

Opening takes the same time whatever the size; an example is two slices of a mapped file.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.config.run_folder import write_json
from trainer.data.tokenize import TokenizedExample

SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.int32())),  # start, end, start, end, ...
        ("label", pa.int32()),
    ]
)
ROWS_PER_BATCH = 4096
"""Of every record batch but the last, so that a number says in which batch its example is."""

OPEN_BATCHES = 256
"""Record batches of a task whose addresses are kept; the bytes stay in the file."""

EXAMPLES, LENGTHS, SUMMARY = "examples.arrow", "lengths.int32", "summary.json"


@dataclass(kw_only=True)
class Summary:
    """What is told about the examples of a task, counted while they were made."""

    num_examples: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    """Tokens that carry loss, or examples of a classifier."""

    longest: int = 0
    """Tokens of the longest example."""

    num_overlength: int = 0
    """Over-long examples that were left out."""

    num_truncated: int = 0
    """Over-long examples that were cut."""

    num_bad: int = 0
    """Examples that could not be read or put into words, and were skipped."""

    num_held_out: int = 0
    """Examples of the same source that are held out."""


class TokenWriter:
    """Writes one task; no more than one record batch and what was added last is in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = pa.ipc.new_file(str(folder / EXAMPLES), SCHEMA)
        self._lengths = (folder / LENGTHS).open("wb")
        self._waiting: list[pa.RecordBatch] = []
        self.summary = Summary()

    def add(self, batch: pa.RecordBatch) -> None:
        """The next examples, in their order; see `as_record_batch`."""
        self._waiting.append(batch)
        if sum(len(waiting) for waiting in self._waiting) >= ROWS_PER_BATCH:
            self._write_whole_batches()

    def close(self) -> Summary:
        """Write the rest and the summary."""
        self._write_whole_batches()
        for rest in self._waiting:
            self._write(rest)
        self._file.close()
        self._lengths.close()
        write_json(self._folder / SUMMARY, asdict(self.summary))
        return self.summary

    def _write_whole_batches(self) -> None:
        table = pa.Table.from_batches(self._waiting, SCHEMA).combine_chunks()
        whole = len(table) - len(table) % ROWS_PER_BATCH
        for start in range(0, whole, ROWS_PER_BATCH):
            self._write(table.slice(start, ROWS_PER_BATCH).to_batches()[0])
        self._waiting = table.slice(whole).to_batches()  # a slice: written out, it is no longer than it looks

    def _write(self, batch: pa.RecordBatch) -> None:
        lengths = batch.column("input_ids").value_lengths().to_numpy().astype(np.int32)
        self._file.write_batch(batch)
        self._lengths.write(lengths.tobytes())
        self.summary.num_examples += len(lengths)
        self.summary.num_tokens += int(lengths.sum())
        self.summary.longest = max(self.summary.longest, int(lengths.max()))


def as_record_batch(example_ids: Sequence[str], examples: Sequence[TokenizedExample]) -> pa.RecordBatch:
    """Examples as columns, ready to travel between processes and to be written."""
    lengths = [len(example.input_ids) for example in examples]
    ids = np.concatenate([np.asarray(example.input_ids, dtype=np.int32) for example in examples])
    spans = [[place for span in example.spans for place in span] for example in examples]
    columns = [
        pa.array(example_ids, pa.string()),
        pa.ListArray.from_arrays(np.cumsum([0, *lengths], dtype=np.int32), ids),
        pa.array(spans, pa.list_(pa.int32())),
        pa.array([example.label for example in examples], pa.int32()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def examples_of(batch: pa.RecordBatch) -> list[tuple[str, TokenizedExample]]:
    """Ids and examples that `as_record_batch` put into columns."""
    columns = _columns(batch)
    return [(columns.example_id(row), columns.example(row)) for row in range(len(batch))]


class TaskData:
    """The training examples of one task."""

    def __init__(self, name: str, folder: Path) -> None:
        """Open what a `TokenWriter` wrote."""
        self.name, self.key = name, folder.name
        self.summary = Summary(**json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
        self.lengths: np.ndarray = np.memmap(folder / LENGTHS, dtype=np.int32, mode="r")
        """Tokens of each example."""

        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / EXAMPLES)))
        self._batch = lru_cache(maxsize=OPEN_BATCHES)(self._open_batch)

    @property
    def num_examples(self) -> int:
        """How many there are."""
        return self.summary.num_examples

    def __getitem__(self, index: int) -> TokenizedExample:
        return self._batch(index // ROWS_PER_BATCH).example(index % ROWS_PER_BATCH)

    def example_id(self, index: int) -> str:
        """The id of the row that an example was made of."""
        return self._batch(index // ROWS_PER_BATCH).example_id(index % ROWS_PER_BATCH)

    def _open_batch(self, number: int) -> "_Columns":
        return _columns(self._reader.get_batch(number))


@dataclass(frozen=True, slots=True)
class _Columns:
    """One record batch, not copied."""

    ids: np.ndarray
    id_starts: np.ndarray
    spans: np.ndarray
    span_starts: np.ndarray
    labels: pa.Array
    example_ids: pa.Array

    def example(self, row: int) -> TokenizedExample:
        ids = self.ids[self.id_starts[row] : self.id_starts[row + 1]]
        flat = self.spans[self.span_starts[row] : self.span_starts[row + 1]].tolist()
        return TokenizedExample(ids, tuple(zip(flat[::2], flat[1::2], strict=True)), self.labels[row].as_py())

    def example_id(self, row: int) -> str:
        return str(self.example_ids[row].as_py())


def _columns(batch: pa.RecordBatch) -> _Columns:
    ids, spans = batch.column("input_ids"), batch.column("spans")
    return _Columns(
        ids=ids.values.to_numpy(),
        id_starts=ids.offsets.to_numpy(),
        spans=spans.values.to_numpy(),
        span_starts=spans.offsets.to_numpy(),
        labels=batch.column("label"),
        example_ids=batch.column("example_id"),
    )

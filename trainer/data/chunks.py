"""Rows to token ids, some thousand at a time, on as many processes as there are, in the order of the rows."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa

from trainer.config.data_schema import TaskSection
from trainer.config.errors import DataError
from trainer.data.examples import Render, is_held_out_row, renderer
from trainer.data.heldout import read_heldout
from trainer.data.leakage import Leakage, Overlap
from trainer.data.sources import Row
from trainer.data.templates import Rendered
from trainer.data.token_store import as_record_batch
from trainer.data.tokenize import PromptEncoder, TokenizedExample, load_tokenizer

ROWS_PER_CHUNK = 1024
CHUNKS_BY_MYSELF = 16
"""Before other processes are asked for help: they take seconds to start."""

CHUNKS_IN_FLIGHT = 3
"""For each other process."""

CHUNKS_WAITING = 16
"""For each process: results that wait for an earlier one."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecipe:
    """How the rows of a task become token ids. Small: it travels with every chunk."""

    key: str
    """Name of what is made, which follows from what it is made of."""

    name: str
    task: TaskSection
    model_folder: str
    labels: tuple[str, ...]
    chat_template: bool
    sequence_length_tokens: int
    on_overlength: Literal["error", "drop", "truncate"]
    heldout_files: tuple[str, ...] = ()
    """What `write_heldout` wrote of every evaluation; empty where nobody looks for leakage."""

    similarity: float = 1.0
    wants_tokens: bool = True


@dataclass(slots=True)
class Chunk:
    """What became of some rows."""

    batch: pa.RecordBatch | None = None
    num_targets: int = 0
    num_held_out: int = 0
    num_overlength: int = 0
    first_overlength: str = ""
    num_truncated: int = 0
    bad: list[str] = field(default_factory=list)
    """One message for each bad example."""

    overlaps: list[Overlap] = field(default_factory=list)
    """The strongest for each held-out example, of all rows that this process has seen."""


def train_chunk(recipe: TaskRecipe, rows: list[Row]) -> Chunk:
    """Render, compare with what is held out, and encode. Bad rows become messages, so that all of them are told."""
    maker, chunk = _maker(recipe), Chunk()
    rendered = _rendered(maker, rows, chunk)
    if maker.leakage is not None:
        for example in rendered:
            maker.leakage.look(recipe.name, example.example_id, example.content, prompt=example.bare_prompt)
        chunk.overlaps = maker.leakage.found()
    if not recipe.wants_tokens:
        return chunk
    kept: list[tuple[str, TokenizedExample]] = []
    for example, encoded in _encoded(maker, rendered, chunk):
        fitting = _fitted(recipe, example, encoded, chunk)
        if fitting is not None:
            kept.append((example.example_id, fitting))
    if kept:
        chunk.batch = as_record_batch([name for name, _ in kept], [example for _, example in kept])
        chunk.num_targets = sum(1 if example.label is not None else example.num_targets for _, example in kept)
    return chunk


def heldout_chunk(recipe: TaskRecipe, rows: list[Row]) -> tuple[list[tuple[Row, Rendered]], list[str]]:
    """The rows that are held out, rendered; and a message for each bad row."""
    render = renderer(recipe.name, recipe.task)
    found, bad = [], []
    for row in rows:
        try:
            example = render(row.values, where=row.where)
        except DataError as error:
            bad.append(str(error))
            continue
        if recipe.task.heldout is not None or is_held_out_row(example, recipe.task):
            found.append((row, example))
    return found, bad


def in_order(
    function: Callable[[Item, list[Row]], Result], first: Item, rows: Iterable[Row], *, processes: int
) -> Iterator[Result]:
    """`function(first, chunk)` of each chunk of rows, in their order, with a bounded number of chunks in memory.

    This process works on chunks too, while the others start and whenever they have enough to do.
    """
    source = iter(rows)
    chunks = iter(lambda: list(islice(source, ROWS_PER_CHUNK)), [])
    for chunk in islice(chunks, CHUNKS_BY_MYSELF) if processes > 1 else chunks:
        yield function(first, chunk)
    begun = next(chunks, None) if processes > 1 else None
    if begun is None:
        return
    waiting: deque[Future[Result]] = deque()
    # Not forked: this process may hold threads of libraries that do not survive it.
    with ProcessPoolExecutor(
        processes - 1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_ENCODERS.update,  # a tokenizer is sent in no time, and takes a second to load
        initargs=(dict(_ENCODERS),),
    ) as pool:
        try:
            for chunk in chain([begun], chunks):
                if sum(not future.done() for future in waiting) < CHUNKS_IN_FLIGHT * (processes - 1):
                    waiting.append(pool.submit(function, first, chunk))
                else:
                    waiting.append(Future())
                    waiting[-1].set_result(function(first, chunk))
                while waiting and (waiting[0].done() or len(waiting) > CHUNKS_WAITING * processes):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Maker:
    """What a process keeps between the chunks of one task."""

    recipe: TaskRecipe
    render: Render
    encoder: PromptEncoder
    leakage: Leakage | None


_ENCODERS: dict[tuple[str, tuple[str, ...]], PromptEncoder] = {}
"""By model folder and labels."""

_MAKERS: dict[str, _Maker] = {}
"""One at most: of the task that this process works on."""


def _maker(recipe: TaskRecipe) -> _Maker:
    if recipe.key not in _MAKERS:
        _MAKERS.clear()
        leakage = None
        if recipe.heldout_files:
            texts, prompts = read_heldout([Path(path) for path in recipe.heldout_files])
            leakage = Leakage(texts, similarity=recipe.similarity, prompts=prompts)
        whose = recipe.model_folder, recipe.labels
        if whose not in _ENCODERS:
            _ENCODERS[whose] = PromptEncoder(load_tokenizer(recipe.model_folder), labels=recipe.labels)
        _MAKERS[recipe.key] = _Maker(recipe, renderer(recipe.name, recipe.task), _ENCODERS[whose], leakage)
    return _MAKERS[recipe.key]


def _rendered(maker: _Maker, rows: list[Row], chunk: Chunk) -> list[Rendered]:
    rendered = []
    for row in rows:
        try:
            example = maker.render(row.values, where=row.where)
        except DataError as error:
            chunk.bad.append(str(error))
            continue
        if maker.recipe.task.heldout is None and is_held_out_row(example, maker.recipe.task):
            chunk.num_held_out += 1
            continue
        rendered.append(example)
    return rendered


def _encoded(maker: _Maker, rendered: list[Rendered], chunk: Chunk) -> list[tuple[Rendered, TokenizedExample]]:
    """All at once; one by one where one of them is bad."""
    recipe = maker.recipe
    try:
        encoded = maker.encoder.encode(rendered, chat_template=recipe.chat_template, train_on=recipe.task.train_on)
    except DataError as error:
        if len(rendered) == 1:
            chunk.bad.append(str(error))
            return []
        return [pair for example in rendered for pair in _encoded(maker, [example], chunk)]
    return list(zip(rendered, encoded, strict=True))


def _fitted(recipe: TaskRecipe, example: Rendered, encoded: TokenizedExample, chunk: Chunk) -> TokenizedExample | None:
    """The example, cut where that is asked for; None where it is over-long or has nothing to learn."""
    length, limit = len(encoded.input_ids), recipe.sequence_length_tokens
    if length > limit and recipe.on_overlength != "truncate":
        chunk.num_overlength += 1
        chunk.first_overlength = chunk.first_overlength or f"{example.where} has {length} tokens"
        return None
    if length > limit:
        chunk.num_truncated += 1
        encoded = encoded.truncated(limit)
        if encoded.label is None and not encoded.num_targets:
            chunk.num_truncated -= 1
            chunk.bad.append(
                f"{example.where}: no trained token is left of {length} after cutting at {limit}: nothing to learn "
                "from. Raise data.sequence_length_tokens, or set data.on_overlength=drop."
            )
            return None
    return encoded

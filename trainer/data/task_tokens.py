"""The training examples of a task, made once: token ids on disk, and what of them is also held out."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from trainer.config.data_schema import DataSection
from trainer.config.errors import DataError
from trainer.config.run_folder import write_json
from trainer.data.artifact import Builder, Say, made_once
from trainer.data.chunks import TaskRecipe, in_order, train_chunk
from trainer.data.fingerprint import key_of
from trainer.data.leakage import Overlap, strongest
from trainer.data.sources import BadExamples, read_rows
from trainer.data.token_store import TaskData, TokenWriter

OVERLAPS = "overlaps.json"


def prepare_task(
    cache: Path,
    name: str,
    data: DataSection,
    *,
    source_key: str,
    model_folder: str,
    labels: tuple[str, ...],
    heldout_folders: Sequence[Path],
    processes: int,
    say: Say,
) -> tuple[TaskData, list[Overlap]]:
    """Open the tokens of a task, made now where they are not there yet, and its overlaps with what is held out.

    Args:
        cache: folder of all prepared data.
        source_key: what the source holds and which tokenizer reads it.
        heldout_folders: prepared evaluations; empty where nobody looks for leakage. Their names say what they hold.

    Raises:
        DataError: examples are bad or over-long and may not be, or none is left.
    """
    task = data.tasks[name]
    wording = {
        "task": task.model_dump(mode="json", exclude={"weight", "score", "train", "heldout"}),
        "is_split": task.heldout is None,
        "labels": labels,
        "sequence_length_tokens": data.sequence_length_tokens,
        "on_overlength": data.on_overlength,
        "on_bad_example": data.on_bad_example,
        "chat_template": data.chat_template,
    }
    tokens_key = key_of("tokens", source_key, wording)
    heldout = [folder.name for folder in heldout_folders]
    overlaps_key = key_of("overlaps", tokens_key, heldout, data.near_duplicate_similarity)
    recipe = recipe_of(
        name, data, key=overlaps_key, model_folder=model_folder, labels=labels, heldout_folders=heldout_folders
    )
    tokens_folder, overlaps_folder = cache / "tokens" / tokens_key, cache / "overlaps" / overlaps_key
    wait = data.preparation_timeout_seconds
    with ExitStack() as stack:
        tokens = stack.enter_context(made_once(tokens_folder, what=f"task {name}", say=say, timeout_seconds=wait))
        overlaps = None
        if heldout:
            what = f"leakage of task {name}"
            overlaps = stack.enter_context(made_once(overlaps_folder, what=what, say=say, timeout_seconds=wait))
        if tokens is not None or overlaps is not None:
            _make(replace(recipe, wants_tokens=tokens is not None), data, tokens, overlaps, processes=processes)
    found = json.loads((overlaps_folder / OVERLAPS).read_text(encoding="utf-8")) if heldout else []
    return TaskData(name, tokens_folder), [replace(Overlap(**overlap), train_task=name) for overlap in found]


def recipe_of(
    name: str,
    data: DataSection,
    *,
    key: str,
    model_folder: str,
    labels: tuple[str, ...],
    heldout_folders: Sequence[Path],
) -> TaskRecipe:
    """How the rows of a task become token ids. `key` names all that it is made of."""
    return TaskRecipe(
        key=key,
        name=name,
        task=data.tasks[name],
        model_folder=model_folder,
        labels=labels,
        chat_template=data.chat_template,
        sequence_length_tokens=data.sequence_length_tokens,
        on_overlength=data.on_overlength,
        heldout_files=tuple(str(folder / "heldout.jsonl") for folder in heldout_folders),
        similarity=data.near_duplicate_similarity,
    )


def _make(
    recipe: TaskRecipe, data: DataSection, tokens: Builder | None, overlaps: Builder | None, *, processes: int
) -> None:
    """One pass over the rows for what is missing."""
    task = recipe.task
    bad = BadExamples(data.on_bad_example)
    writer = TokenWriter(tokens.folder) if tokens is not None else None
    found: list[Overlap] = []
    num_overlength, first_overlength = 0, ""
    rows = read_rows(task.train, columns=task.columns, bad=bad)
    for chunk in in_order(train_chunk, recipe, rows, processes=processes):
        found = strongest([*found, *chunk.overlaps])
        for message in chunk.bad:
            bad.add(message)
        num_overlength += chunk.num_overlength
        first_overlength = first_overlength or chunk.first_overlength
        if writer is not None:
            summary = writer.summary
            summary.num_targets += chunk.num_targets
            summary.num_held_out += chunk.num_held_out
            summary.num_truncated += chunk.num_truncated
            if chunk.batch is not None:
                writer.add(chunk.batch)
        for builder in (tokens, overlaps):
            if builder is not None:
                builder.progress(f"{bad.num_read:,} examples read")
    if writer is not None:
        writer.summary.num_bad = bad.finish(f"data.tasks.{recipe.name}.train")
        writer.summary.num_overlength = num_overlength
        refuse_overlength(recipe, num_overlength, first_overlength)
        if not writer.close().num_examples:
            why = f"all {num_overlength} examples are over-long. Raise the length." if num_overlength else ""
            raise DataError(f"data.tasks.{recipe.name}: empty data set: {why or 'no example to train on.'}")
    if overlaps is not None:
        write_json(overlaps.folder / OVERLAPS, [asdict(overlap) for overlap in found])


def refuse_overlength(recipe: TaskRecipe, num_overlength: int, first: str) -> None:
    """Raise where over-long examples may not be left out."""
    if num_overlength and recipe.on_overlength == "error":
        others = f" (and {num_overlength - 1} more)" if num_overlength > 1 else ""
        raise DataError(
            f"data.tasks.{recipe.name}: {first}, more than data.sequence_length_tokens "
            f"{recipe.sequence_length_tokens}{others}. Raise it, or set data.on_overlength to drop or truncate."
        )

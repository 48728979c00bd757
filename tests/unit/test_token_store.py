"""Examples on disk come back as they went in, whatever the sizes of the pieces they came in."""

from pathlib import Path

import numpy as np
import pytest

from trainer.data.token_store import ROWS_PER_BATCH, Summary, TaskData, TokenWriter, as_record_batch
from trainer.data.tokenize import TokenizedExample, tail


def written(folder: Path, pieces: list[list[TokenizedExample]]) -> Summary:
    folder.mkdir()
    writer, number = TokenWriter(folder), 0
    for piece in pieces:
        writer.add(as_record_batch([f"id {number + index}" for index in range(len(piece))], piece))
        number += len(piece)
    return writer.close()


def plain(example: TokenizedExample) -> tuple[list[int], tuple[tuple[int, int], ...], int | None]:
    return [int(token) for token in example.input_ids], example.spans, example.label


def random_examples(number: int) -> list[TokenizedExample]:
    generator = np.random.default_rng(number)
    return [
        tail(generator.integers(0, 2**31 - 1, prompt).tolist(), generator.integers(0, 9, response).tolist())
        for prompt, response in zip(generator.integers(0, 9, number), generator.integers(1, 5, number), strict=True)
    ]


@pytest.mark.parametrize("piece", [1, 7, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, 3 * ROWS_PER_BATCH])
def test_every_example_comes_back_whatever_the_pieces(tmp_path: Path, piece: int) -> None:
    examples = random_examples(2 * ROWS_PER_BATCH + 5 if piece > 1 else 50)
    pieces = [examples[start : start + piece] for start in range(0, len(examples), piece)]
    summary = written(tmp_path / "task", pieces)
    task = TaskData("quiz", tmp_path / "task")
    assert task.num_examples == summary.num_examples == len(examples)
    for index in {0, len(examples) - 1, *range(0, len(examples), 97), *range(ROWS_PER_BATCH - 2, ROWS_PER_BATCH + 2)}:
        if index < len(examples):
            assert plain(task[index]) == plain(examples[index])
            assert task.example_id(index) == f"id {index}"
    lengths = [len(example.input_ids) for example in examples]
    assert task.lengths.tolist() == lengths
    assert (summary.num_tokens, summary.longest) == (sum(lengths), max(lengths))
    assert task.summary == summary


def test_several_spans_and_labels_are_kept(tmp_path: Path) -> None:
    chat = TokenizedExample([1, 2, 3, 4, 5, 6], ((1, 3), (5, 6)))
    labelled = TokenizedExample([7, 8], label=0)
    written(tmp_path / "task", [[chat, labelled]])
    task = TaskData("quiz", tmp_path / "task")
    assert [plain(task[index]) for index in range(2)] == [plain(chat), plain(labelled)]


def test_opening_reads_no_example(tmp_path: Path) -> None:
    written(tmp_path / "task", [random_examples(10)])
    path = tmp_path / "task" / "examples.arrow"
    task = TaskData("quiz", tmp_path / "task")
    assert task.num_examples == 10
    assert isinstance(task.lengths, np.memmap)
    assert path.stat().st_size > 0


def test_what_is_cut_keeps_the_spans_that_are_left() -> None:
    chat = TokenizedExample([1, 2, 3, 4, 5, 6], ((1, 3), (4, 6)))
    assert plain(chat.truncated(5)) == ([1, 2, 3, 4, 5], ((1, 3), (4, 5)), None)
    assert plain(chat.truncated(4)) == ([1, 2, 3, 4], ((1, 3),), None)
    assert chat.truncated(1).num_targets == 0

"""Micro-batches: the same examples on every layout, the right labels, and no token lost to padding."""

from collections import Counter

import pytest
import torch

from trainer.data.collate import Batch, StepBatches, collate
from trainer.data.mixture import Mixture
from trainer.data.sources import as_dataset
from trainer.data.tokenize import TaskData, TokenizedExample
from trainer.loss import IGNORED, count_targets

PAD = 0
NUM_STEPS = 6
EXAMPLES_PER_STEP = 8
LAYOUTS = {"1 rank x 4": (1, 2), "2 ranks x 2": (2, 2), "4 ranks x 1": (4, 2), "1 rank x 1": (1, 8), "8 ranks": (8, 1)}
"""(ranks, examples of a micro-batch)."""

Content = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Task, ids and supervised ids of one example."""


def task_of(name: str, *, first_id: int, lengths: list[int]) -> TaskData:
    """Examples of given lengths, every id of them different; the last third of each is supervised."""
    rows, next_id = [], first_id
    for length in lengths:
        rows.append(
            {
                "input_ids": list(range(next_id, next_id + length)),
                "num_target_tokens": max(1, length // 3),
                "label": None,
            }
        )
        next_id += length
    return TaskData(name, as_dataset(rows), 0)


TASKS = [
    task_of("a", first_id=1, lengths=[3, 11, 5, 8, 8, 2, 17]),
    task_of("b", first_id=1001, lengths=[4, 4, 9, 30, 6]),
]
MIXTURE = Mixture(sizes=[7, 5], shares=[2 / 3, 1 / 3], length=NUM_STEPS * EXAMPLES_PER_STEP, seed=17)


def batches_of(rank: int, *, world_size: int, size: int) -> StepBatches:
    return StepBatches(
        tasks=TASKS,
        mixture=MIXTURE,
        examples_per_step=EXAMPLES_PER_STEP,
        examples_per_microbatch=size,
        rank=rank,
        world_size=world_size,
        pad_token_id=PAD,
    )


def contents(batch: Batch) -> list[Content]:
    """What each row of a batch holds, without its padding."""
    rows = zip(batch.task_B, batch.input_ids_BT, batch.attention_mask_BT, batch.targets_BT, strict=True)
    return [
        (int(task), tuple(ids_T[mask_T == 1].tolist()), tuple(labels_T[labels_T != IGNORED].tolist()))
        for task, ids_T, mask_T, labels_T in rows
    ]


def wanted_contents(step: int) -> Counter[Content]:
    """The step's examples, straight from the order and the tables."""
    found: Counter[Content] = Counter()
    for position in range(step * EXAMPLES_PER_STEP, (step + 1) * EXAMPLES_PER_STEP):
        draw = MIXTURE[position]
        example = TASKS[draw.task][draw.index]
        ids = tuple(example.input_ids)
        found[draw.task, ids, ids[-example.num_target_tokens :]] += 1
    return found


@pytest.mark.parametrize(("world_size", "size"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_all_ranks_and_microbatches_together_hold_the_examples_of_the_step(world_size: int, size: int) -> None:
    for step in range(NUM_STEPS):
        dealt = [
            batch for rank in range(world_size) for batch in batches_of(rank, world_size=world_size, size=size).at(step)
        ]
        assert Counter(content for batch in dealt for content in contents(batch)) == wanted_contents(step)


@pytest.mark.parametrize(("world_size", "size"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_no_layout_gains_or_loses_a_token(world_size: int, size: int) -> None:
    # One table of each step, straight from the data: real tokens and supervised tokens.
    for step in range(NUM_STEPS):
        dealt = [
            batch for rank in range(world_size) for batch in batches_of(rank, world_size=world_size, size=size).at(step)
        ]
        wanted = wanted_contents(step)
        assert sum(int(batch.attention_mask_BT.sum()) for batch in dealt) == sum(
            len(c[1]) * n for c, n in wanted.items()
        )
        assert sum(int(count_targets(batch.targets_BT)) for batch in dealt) == sum(
            len(c[2]) * n for c, n in wanted.items()
        )


@pytest.mark.parametrize(("world_size", "size"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_rank_has_as_many_microbatches_of_the_same_size(world_size: int, size: int) -> None:
    # 8 examples = ranks x micro-batches x examples of a micro-batch.
    for rank in range(world_size):
        dealt = batches_of(rank, world_size=world_size, size=size).at(0)
        assert [len(batch.input_ids_BT) for batch in dealt] == [size] * (EXAMPLES_PER_STEP // world_size // size)


def test_a_step_is_the_same_whether_or_not_earlier_steps_were_asked_for() -> None:
    one_by_one = batches_of(1, world_size=2, size=2)
    seen = [one_by_one.at(step) for step in range(NUM_STEPS)]
    resumed = batches_of(1, world_size=2, size=2).at(NUM_STEPS - 1)
    for before, after in zip(seen[-1], resumed, strict=True):
        assert torch.equal(before.input_ids_BT, after.input_ids_BT)
        assert torch.equal(before.targets_BT, after.targets_BT)


def test_microbatches_of_similar_lengths_share_little_padding() -> None:
    # Sorted by length, the rows of a micro-batch are neighbours: no row is longer than the shortest of the next.
    lengths = [batch.attention_mask_BT.sum(dim=1).tolist() for batch in batches_of(0, world_size=1, size=2).at(0)]
    assert [length for row in lengths for length in row] == sorted(length for row in lengths for length in row)


def test_only_the_targets_are_labelled_and_rows_are_padded_on_the_right() -> None:
    # First row: prompt 5 6, response 7 and end-of-text 2.  Second row: prompt 8, response 2 alone.
    batch = collate([TokenizedExample([5, 6, 7, 2], 2), TokenizedExample([8, 2], 1)], tasks=[3, 1], pad_token_id=PAD)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 2], [8, 2, PAD, PAD]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.targets_BT.tolist() == [[IGNORED, 7, 2, IGNORED], [2, IGNORED, IGNORED, IGNORED]]
    assert batch.task_B.tolist() == [3, 1]


def test_a_pad_token_that_is_also_the_end_of_text_is_trained_once() -> None:
    # Many tokenizers pad with their end-of-text token: the real one carries loss, the filling does not.
    batch = collate([TokenizedExample([5, 6, 7, 2], 2), TokenizedExample([8, 2], 1)], tasks=[0, 0], pad_token_id=2)
    assert batch.input_ids_BT[1].tolist() == [8, 2, 2, 2]
    assert batch.targets_BT[1].tolist() == [2, IGNORED, IGNORED, IGNORED]
    assert batch.attention_mask_BT[1].tolist() == [1, 1, 0, 0]


def test_the_first_token_is_never_a_target_since_nothing_predicts_it() -> None:
    batch = collate([TokenizedExample([5, 6, 2], 3)], tasks=[0], pad_token_id=PAD)
    assert batch.targets_BT.tolist() == [[6, 2, IGNORED]]


def test_the_target_of_a_classified_example_is_its_class() -> None:
    examples = [TokenizedExample([5, 6, 7], 0, label=1), TokenizedExample([8], 0, label=0)]
    batch = collate(examples, tasks=[0, 0], pad_token_id=PAD)
    assert batch.targets_BT.tolist() == [[1], [0]]
    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [8, PAD, PAD]]


def test_rows_are_padded_to_a_given_width() -> None:
    batch = collate([TokenizedExample([5, 6, 2], 1)], tasks=[0], pad_token_id=PAD, width=5)
    assert batch.input_ids_BT.tolist() == [[5, 6, 2, PAD, PAD]]
    assert batch.targets_BT.tolist() == [[IGNORED, 2, IGNORED, IGNORED, IGNORED]]


def test_an_example_without_targets_has_none() -> None:
    batch = collate([TokenizedExample([5, 6], 0), TokenizedExample([7], 0)], tasks=[0, 0], pad_token_id=PAD)
    assert batch.targets_BT.tolist() == [[IGNORED, IGNORED], [IGNORED, IGNORED]]


def test_a_batch_moves_to_a_device_as_a_whole() -> None:
    moved = collate([TokenizedExample([5, 6], 1)], tasks=[0], pad_token_id=PAD).to(torch.device("meta"))
    tensors = (moved.input_ids_BT, moved.attention_mask_BT, moved.targets_BT, moved.task_B)
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    assert [tuple(tensor.shape) for tensor in tensors] == [(1, 2), (1, 2), (1, 2), (1,)]

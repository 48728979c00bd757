"""Micro-batches: the same examples on every layout, the right labels, and no token lost to padding or to packing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.data.collate import Batch, Item, StepBatches, collate
from trainer.data.draws import Mixture
from trainer.data.order import Order
from trainer.data.token_store import TaskData, TokenWriter, as_record_batch
from trainer.data.tokenize import TokenizedExample, tail
from trainer.loss import IGNORED, count_targets

PAD = 0
NUM_STEPS = 6
EXAMPLES_PER_STEP = 8
ROW_TOKENS = 32
LENGTHS = [[3, 11, 5, 8, 8, 2, 17], [4, 4, 9, 30, 6]]
LAYOUTS = {"1 rank x 4": (1, 2), "2 ranks x 2": (2, 2), "4 ranks x 1": (4, 2), "1 rank x 1": (1, 8), "8 ranks": (8, 1)}
"""(ranks, rows of a micro-batch)."""

UNEVEN = {"3 ranks": (3, 1), "3 ranks x 3": (3, 3), "2 ranks x 5": (2, 5), "7 ranks": (7, 1), "5 ranks x 2": (5, 2)}
"""Layouts on which 8 examples do not go round."""

every_layout = pytest.mark.parametrize(("world_size", "size"), [*LAYOUTS.values(), *UNEVEN.values()])
either_way = pytest.mark.parametrize("row_tokens", [None, ROW_TOKENS], ids=["alone", "packed"])

Content = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Task, ids and supervised ids of one example."""


def task_of(folder: Path, *, first_id: int, lengths: list[int] | np.ndarray) -> TaskData:
    """Examples of given lengths, every id of them different; the last third of each is supervised."""
    examples, next_id = [], first_id
    for length in lengths:
        ids = list(range(next_id, next_id + length))
        num_targets = max(1, length // 3)
        examples.append(tail(ids[:-num_targets], ids[-num_targets:]))
        next_id += length
    folder.mkdir()
    writer = TokenWriter(folder)
    writer.add(as_record_batch([f"{folder.name}{number}" for number in range(len(examples))], examples))
    writer.close()
    return TaskData(folder.name, folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[TaskData]:
    folder = tmp_path_factory.mktemp("tokens")
    return [
        task_of(folder / name, first_id=first_id, lengths=lengths)
        for name, first_id, lengths in zip("ab", (1, 1001), LENGTHS, strict=True)
    ]


def order_of_six_steps() -> Order:
    """Six steps of 8 examples, two of the first task to one of the second."""
    num_examples = NUM_STEPS * EXAMPLES_PER_STEP
    mixture = Mixture(sizes=[7, 5], shares=np.array([2 / 3, 1 / 3]), length=num_examples, seed=17)
    starts = np.arange(NUM_STEPS + 1) * EXAMPLES_PER_STEP
    return Order(mixture.tasks_T, mixture.indices_T, mixture.tokens([np.array(own) for own in LENGTHS]), starts)


ORDER = order_of_six_steps()


def batches_of(
    tasks: list[TaskData],
    rank: int,
    *,
    world_size: int,
    size: int,
    row_tokens: int | None = None,
    order: Order = ORDER,
) -> StepBatches:
    return StepBatches(
        tasks=tasks,
        order=order,
        rows_per_microbatch=size,
        rank=rank,
        world_size=world_size,
        pad_token_id=PAD,
        row_tokens=row_tokens,
    )


def dealt(tasks: list[TaskData], step: int, *, world_size: int, **layout: Any) -> list[list[Batch]]:
    """Micro-batches of a step on every rank."""
    return [batches_of(tasks, rank, world_size=world_size, **layout).at(step) for rank in range(world_size)]


def contents(batch: Batch) -> dict[int, Content]:
    """What a batch holds at each position of the order, without its padding."""
    found = []
    segments_BT = batch.attention_mask_BT - 1 if batch.segments_BT is None else batch.segments_BT
    rows = zip(segments_BT, batch.tasks_BT, batch.input_ids_BT, batch.targets_BT, strict=True)
    for segments_T, tasks_T, ids_T, targets_T in rows:
        for segment in range(int(segments_T.max()) + 1):
            own_T = segments_T == segment
            (task,) = tasks_T[own_T].unique().tolist()
            targets = targets_T[own_T]
            found.append((task, tuple(ids_T[own_T].tolist()), tuple(targets[targets != IGNORED].tolist())))
    return dict(zip(batch.positions, found, strict=True)) if batch.positions else {}


def wanted_contents(tasks: list[TaskData], step: int, *, order: Order = ORDER) -> dict[int, Content]:
    """The step's examples, straight from the order and the tables."""
    wanted = {}
    for position in order.positions(step):
        draw = order.draw(position)
        ids = tuple(tasks[draw.task][draw.index].input_ids.tolist())
        wanted[position] = (draw.task, ids, ids[1:][-max(1, len(ids) // 3) :])  # nothing predicts the first one
    return wanted


@either_way
@every_layout
def test_all_ranks_and_microbatches_together_hold_the_examples_of_the_step(
    tasks: list[TaskData], world_size: int, size: int, row_tokens: int | None
) -> None:
    for step in range(NUM_STEPS):
        ranks = dealt(tasks, step, world_size=world_size, size=size, row_tokens=row_tokens)
        found = [pair for rank in ranks for batch in rank for pair in contents(batch).items()]
        assert sorted(found) == sorted(wanted_contents(tasks, step).items())


@either_way
@every_layout
def test_no_layout_gains_or_loses_a_token(
    tasks: list[TaskData], world_size: int, size: int, row_tokens: int | None
) -> None:
    # One table of each step, straight from the data: real tokens and supervised tokens.
    for step in range(NUM_STEPS):
        ranks = dealt(tasks, step, world_size=world_size, size=size, row_tokens=row_tokens)
        batches = [batch for rank in ranks for batch in rank]
        wanted = wanted_contents(tasks, step).values()
        assert sum(int(count_targets(batch.targets_BT)) for batch in batches) == sum(len(c[2]) for c in wanted)
        assert sum(batch.num_tokens for batch in batches) == sum(len(c[1]) for c in wanted)


@pytest.mark.parametrize(("world_size", "size"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_rank_has_as_many_microbatches_of_the_same_size(
    tasks: list[TaskData], world_size: int, size: int
) -> None:
    # 8 examples = ranks x micro-batches x examples of a micro-batch.
    for rank in dealt(tasks, 0, world_size=world_size, size=size):
        assert [len(batch.input_ids_BT) for batch in rank] == [size] * (EXAMPLES_PER_STEP // world_size // size)


@either_way
@every_layout
def test_where_rows_do_not_go_round_ranks_without_one_have_a_token_that_carries_no_loss(
    tasks: list[TaskData], world_size: int, size: int, row_tokens: int | None
) -> None:
    ranks = dealt(tasks, 0, world_size=world_size, size=size, row_tokens=row_tokens)
    num_rows = sum(len(batch.input_ids_BT) for rank in ranks for batch in rank if batch.positions)
    num_chunks = -(-num_rows // size)
    assert {len(rank) for rank in ranks} == {-(-num_chunks // world_size)}
    fillers = [batch for rank in ranks for batch in rank if not batch.positions]
    assert len(fillers) == -num_chunks % world_size
    for batch in fillers:
        assert batch.input_ids_BT.tolist() == [[PAD]]
        assert (int(count_targets(batch.targets_BT)), int(batch.attention_mask_BT.sum())) == (0, 1)
        assert (batch.segments_BT is None) == (row_tokens is None)


@either_way
def test_a_step_is_the_same_whether_or_not_earlier_steps_were_asked_for(
    tasks: list[TaskData], row_tokens: int | None
) -> None:
    one_by_one = batches_of(tasks, 1, world_size=2, size=2, row_tokens=row_tokens)
    seen = [one_by_one.at(step) for step in range(NUM_STEPS)]
    resumed = batches_of(tasks, 1, world_size=2, size=2, row_tokens=row_tokens).at(NUM_STEPS - 1)
    for before, after in zip(seen[-1], resumed, strict=True):
        assert torch.equal(before.input_ids_BT, after.input_ids_BT)
        assert torch.equal(before.targets_BT, after.targets_BT)
        assert before.positions == after.positions


def test_microbatches_of_similar_lengths_share_little_padding(tasks: list[TaskData]) -> None:
    # Sorted by length, the rows of a micro-batch are neighbours: no row is longer than the shortest of the next.
    (rank,) = dealt(tasks, 0, world_size=1, size=2)
    lengths = [length for batch in rank for length in batch.attention_mask_BT.sum(dim=1).tolist()]
    assert lengths == sorted(lengths)


def test_packed_rows_hold_no_more_than_their_tokens_and_are_fewer(tasks: list[TaskData]) -> None:
    (rank,) = dealt(tasks, 0, world_size=1, size=2, row_tokens=ROW_TOKENS)
    assert max(batch.input_ids_BT.shape[1] for batch in rank) <= ROW_TOKENS
    assert sum(len(batch.input_ids_BT) for batch in rank) < EXAMPLES_PER_STEP


def one_each(*examples: TokenizedExample, **options: int) -> Batch:
    """A row for each example."""
    return collate([[Item(example)] for example in examples], pad_token_id=PAD, **options)


def test_only_the_targets_are_labelled_and_rows_are_padded_on_the_right() -> None:
    # First row: prompt 5 6, response 7 and end-of-text 2.  Second row: prompt 8, response 2 alone.
    rows = [[Item(tail([5, 6], [7, 2]), 3, 40)], [Item(tail([8], [2]), 1, 12)]]
    batch = collate(rows, pad_token_id=PAD)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 2], [8, 2, PAD, PAD]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.targets_BT.tolist() == [[IGNORED, 7, 2, IGNORED], [2, IGNORED, IGNORED, IGNORED]]
    assert (batch.tasks_BT[0].tolist(), batch.tasks_BT[1, 0]) == ([3, 3, 3, 3], 1)
    assert (batch.positions, batch.segments_BT, batch.position_ids_BT) == ((40, 12), None, None)


def test_several_trained_spans_of_an_example_are_all_targets_and_nothing_between_them() -> None:
    # 1 | 2 3 | 4 | 5 | 6: trained 2 3 and 5.
    batch = one_each(TokenizedExample([1, 2, 3, 4, 5, 6], ((1, 3), (4, 5))))
    assert batch.targets_BT.tolist() == [[2, 3, IGNORED, 5, IGNORED, IGNORED]]


def test_packed_examples_begin_at_position_zero_and_predict_nothing_of_each_other() -> None:
    # Row of 5 6 | 7 2, then 8 | 2 (trained from its very first token on, which nothing predicts), and three pads.
    row = [Item(tail([5, 6], [7, 2]), 3, 40), Item(tail([], [8, 2]), 1, 12)]
    batch = collate([row, [Item(tail([9], [4]), 2, 13)]], pad_token_id=PAD, width=9, packed=True)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 2, 8, 2, PAD, PAD, PAD], [9, 4] + [PAD] * 7]
    assert batch.targets_BT[0].tolist() == [IGNORED, 7, 2, IGNORED, 2, IGNORED, IGNORED, IGNORED, IGNORED]
    assert batch.targets_BT[1].tolist() == [4] + [IGNORED] * 8
    assert batch.tasks_BT[:, :6].tolist() == [[3, 3, 3, 3, 1, 1], [2, 2, 0, 0, 0, 0]]
    assert batch.segments_BT.tolist() == [[0, 0, 0, 0, 1, 1, -1, -1, -1], [0, 0, -1, -1, -1, -1, -1, -1, -1]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5, 6]]
    assert batch.attention_mask_BT.tolist() == [[1] * 6 + [0] * 3, [1, 1] + [0] * 7]
    assert batch.positions == (40, 12, 13)


def test_a_pad_token_that_is_also_the_end_of_text_is_trained_once() -> None:
    # Many tokenizers pad with their end-of-text token: the real one carries loss, the filling does not.
    batch = collate([[Item(tail([5, 6], [7, 2]))], [Item(tail([8], [2]))]], pad_token_id=2)
    assert batch.input_ids_BT[1].tolist() == [8, 2, 2, 2]
    assert batch.targets_BT[1].tolist() == [2, IGNORED, IGNORED, IGNORED]
    assert batch.attention_mask_BT[1].tolist() == [1, 1, 0, 0]


def test_the_first_token_is_never_a_target_since_nothing_predicts_it() -> None:
    assert one_each(tail([], [5, 6, 2])).targets_BT.tolist() == [[6, 2, IGNORED]]


def test_the_target_of_a_classified_example_is_its_class() -> None:
    examples = [Item(TokenizedExample([5, 6, 7], label=1), 4), Item(TokenizedExample([8], label=0), 2)]
    batch = collate([[example] for example in examples], pad_token_id=PAD)
    assert (batch.targets_BT.tolist(), batch.tasks_BT.tolist()) == ([[1], [0]], [[4], [2]])
    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [8, PAD, PAD]]


@pytest.mark.parametrize("width", [None, 4])
def test_a_microbatch_that_fills_up_a_classifiers_step_fits_its_logits(tmp_path: Path, width: int | None) -> None:
    # One row for two ranks. Logits have one position an example, whatever the number of tokens.
    writer = TokenWriter(tmp_path)
    writer.add(as_record_batch(["a"], [TokenizedExample([5, 6, 7], label=1)]))
    writer.close()
    one = Order(np.zeros(1, int), np.zeros(1, int), np.array([3]), np.array([0, 1]))
    shared = {"tasks": [TaskData("a", tmp_path)], "order": one, "rows_per_microbatch": 1, "pad_token_id": PAD}
    ranks = [StepBatches(rank=rank, world_size=2, width=width, **shared).at(0) for rank in range(2)]
    targets = [batch.targets_BT for rank in ranks for batch in rank]
    assert [own_BT.tolist() for own_BT in targets] == [[[1]], [[IGNORED]]]


def test_rows_are_padded_to_a_given_width() -> None:
    batch = one_each(tail([5, 6], [2]), width=5)
    assert batch.input_ids_BT.tolist() == [[5, 6, 2, PAD, PAD]]
    assert batch.targets_BT.tolist() == [[IGNORED, 2, IGNORED, IGNORED, IGNORED]]


def test_an_example_without_targets_has_none() -> None:
    batch = one_each(TokenizedExample([5, 6]), TokenizedExample([7]))
    assert batch.targets_BT.tolist() == [[IGNORED, IGNORED], [IGNORED, IGNORED]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_moves_to_a_device_as_a_whole(packed: bool) -> None:
    moved = collate([[Item(tail([5], [6]), 0, 9)]], pad_token_id=PAD, packed=packed).to(torch.device("meta"))
    tensors = [moved.input_ids_BT, moved.attention_mask_BT, moved.targets_BT, moved.tasks_BT]
    tensors += [moved.segments_BT, moved.position_ids_BT] if packed else []
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tuple(tensor.shape) for tensor in tensors} == {(1, 2)}
    assert moved.positions == (9,)

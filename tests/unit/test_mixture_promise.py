"""The promise of the mixture, for mixtures that nobody thought of. Shapes: K tasks, T positions, S steps or stages."""

import tempfile
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_collate import batches_of, contents, dealt, task_of, wanted_contents
from trainer.config.course_schema import RampSection, StepsSection, Weight
from trainer.config.data_schema import MixtureSection
from trainer.data.collate import Batch
from trainer.data.course import Course
from trainer.data.draws import Draw, Mixture, example_order
from trainer.data.mixture import task_sequence
from trainer.data.order import Order, StepSize, lay_out
from trainer.data.packing import pack
from trainer.data.shares import base_weights
from trainer.data.token_store import TaskData

ROUNDING = 1e-6
UNPROVEN = 1.5  # where shares change at steps that nobody knows ahead: the worst of 6000 courses as below had 1.3
MAX_LENGTH = 150
ROW_TOKENS = 48
FADING: list[Weight] = [RampSection(ramp=(0.0, 3.0)), StepsSection(steps={0.0: 9.0, 0.5: 0.0})]

promised = settings(deadline=None, derandomize=True, max_examples=100, database=None)


@dataclass(frozen=True)
class Case:
    """All that a mixture is made of."""

    shares: np.ndarray
    example_tokens: list[np.ndarray]
    unit: str
    length: int
    seed: int

    def mixture(self) -> Mixture:
        tokens, sizes = self.example_tokens if self.unit == "tokens" else None, [*map(len, self.example_tokens)]
        return Mixture(sizes=sizes, shares=self.shares, length=self.length, seed=self.seed, example_tokens=tokens)


@dataclass(frozen=True)
class Run:
    """All that the order of a run is made of."""

    course: Course
    mixture: MixtureSection
    lengths: list[np.ndarray]
    size: StepSize
    seed: int

    def order(self) -> Order:
        return lay_out(self.course, mixture=self.mixture, lengths=self.lengths, size=self.size, seed=self.seed)

    def tasks(self, folder: Path) -> list[TaskData]:
        return [task_of(folder / f"{n}", first_id=10**6 * n + 1, lengths=own) for n, own in enumerate(self.lengths)]


def course_of(mixture: MixtureSection, lengths: list[np.ndarray], weights: list[Weight], *, num_steps: int) -> Course:
    base = base_weights(mixture, sizes=[len(own) for own in lengths], tokens=[int(own.sum()) for own in lengths])
    by_name = {f"task{task}": weight for task, weight in enumerate(weights)}
    return Course(names=[*by_name], base=base.tolist(), weights=by_name, stages=(), replay=None, num_steps=num_steps)


@st.composite
def mixtures(draw: st.DrawFn) -> MixtureSection:
    unit = draw(st.sampled_from(["examples", "tokens"]))
    if draw(st.booleans()):
        return MixtureSection(unit=unit)
    cap, temperature = draw(st.none() | st.integers(1, 5000)), draw(st.floats(0.1, 50))
    return MixtureSection(unit=unit, weights="proportional", cap=cap, temperature=temperature)


@st.composite
def tables(draw: st.DrawFn, *, longest: int, max_tasks: int, max_size: int) -> tuple[list[np.ndarray], int]:
    """Lengths of the examples of each task, and a seed."""
    sizes, seed = draw(st.lists(st.integers(1, max_size), min_size=1, max_size=max_tasks)), draw(st.integers(0, 2**31))
    low, high = sorted(draw(st.tuples(st.integers(1, longest), st.integers(1, longest))))
    generator = np.random.default_rng(seed)
    return [generator.integers(low, high + 1, size) for size in sizes], seed


@st.composite
def steady_cases(draw: st.DrawFn) -> Case:
    mixture, (tokens, seed) = draw(mixtures()), draw(tables(longest=4096, max_tasks=9, max_size=60))
    weights = draw(st.lists(st.floats(1e-6, 1e6), min_size=len(tokens), max_size=len(tokens)))
    shares = course_of(mixture, tokens, weights, num_steps=1).shares_at(0)
    return Case(shares, tokens, mixture.unit, draw(st.integers(1, MAX_LENGTH)), seed)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    mixture, (lengths, seed) = draw(mixtures()), draw(tables(longest=ROW_TOKENS, max_tasks=5, max_size=40))
    kind, least, most = draw(st.sampled_from([("examples", 1, 12), ("tokens", ROW_TOKENS, 300), ("rows", 1, 5)]))
    num_steps, amount = draw(st.integers(1, 5)), draw(st.integers(least, most))
    generator = np.random.default_rng(seed)
    weights: list[Weight] = generator.lognormal(sigma=2.0, size=len(lengths)).tolist()
    if seed % 10 < 7:
        weights[1:] = [FADING[number] for number in generator.integers(len(FADING), size=len(lengths) - 1)]
    size = StepSize(num_steps=num_steps, row_tokens=ROW_TOKENS, **{kind: amount})
    return Run(course_of(mixture, lengths, weights, num_steps=num_steps), mixture, lengths, size, seed)


@st.composite
def changing_shares(draw: st.DrawFn, *, max_tasks: int = 7) -> np.ndarray:
    """Rows of shares that jump from stage to stage, or go from one to another in a line."""
    num_tasks, num_stages = draw(st.integers(2, max_tasks)), draw(st.integers(2, 4))
    stage = st.lists(st.sampled_from([0.0, 0.01, 1.0, 2.0, 30.0]), min_size=num_tasks, max_size=num_tasks)
    stages_SK = np.array(draw(st.lists(stage.filter(any), min_size=num_stages, max_size=num_stages)))
    stages_SK /= stages_SK.sum(axis=1, keepdims=True)
    if draw(st.booleans()):
        return np.repeat(stages_SK, draw(st.integers(1, 40)), axis=0)
    part_T1 = np.linspace(0.0, 1.0, draw(st.integers(2, MAX_LENGTH)))[:, None]
    return stages_SK[0] * (1.0 - part_T1) + stages_SK[1] * part_T1


def lags(sequence: np.ndarray, *, shares: np.ndarray, tokens_T: np.ndarray) -> np.ndarray:
    """What was asked of each task less what it was given, at every prefix (T, K)."""
    given_TK = sequence[:, None] == np.arange(shares.shape[-1])
    return np.cumsum((shares - given_TK) * tokens_T[:, None], axis=0)


def drawn_tokens(sequence: np.ndarray, lengths: list[list[int]]) -> np.ndarray:
    """Tokens of each position."""
    draws = [iter(task_lengths) for task_lengths in lengths]
    return np.array([next(draws[task]) for task in sequence])


def random_lengths(num_tasks: int, *, length: int, seed: int) -> list[list[int]]:
    """Lengths from 8 to 4096 tokens, every task with a scale of its own."""
    generator = np.random.default_rng(seed)
    scales = generator.uniform(3, 7, num_tasks)
    return [np.clip(generator.lognormal(scale, 1.0, length + 1), 8, 4096).astype(int).tolist() for scale in scales]


def draws(mixture: Mixture) -> list[Draw]:
    return [mixture[position] for position in range(len(mixture))]


@promised
@given(steady_cases())
def test_every_prefix_holds_every_share_to_within_one_example_or_the_tokens_of_one(case: Case) -> None:
    order = draws(case.mixture())
    sequence = np.array([draw.task for draw in order])
    tokens_T = np.ones(case.length)
    longest = 1.0
    if case.unit == "tokens":
        tokens_T = np.array([case.example_tokens[draw.task][draw.index] for draw in order])
        longest = max(float(np.max(tokens)) for tokens in case.example_tokens)
    assert np.max(np.abs(lags(sequence, shares=case.shares, tokens_T=tokens_T))) <= longest + ROUNDING


@promised
@given(changing_shares())
def test_shares_that_change_are_held_to_within_the_bound_of_the_chairman_assignment(shares_TK: np.ndarray) -> None:
    length, num_tasks = shares_TK.shape
    found = lags(task_sequence(shares_TK, length=length), shares=shares_TK, tokens_T=np.ones(length))
    assert np.max(np.abs(found)) <= 1.0 - 1.0 / (2 * num_tasks - 2) + ROUNDING


@promised
@given(changing_shares(), st.integers(0, 10**6))
def test_with_changing_shares_of_tokens_no_task_is_more_than_one_longest_example_ahead(
    shares_TK: np.ndarray, seed: int
) -> None:
    length, num_tasks = shares_TK.shape
    lengths = random_lengths(num_tasks, length=length, seed=seed)
    sequence = task_sequence(shares_TK, length=length, lengths=lengths)
    tokens_T = drawn_tokens(sequence, lengths)
    found = lags(sequence, shares=shares_TK, tokens_T=tokens_T) / max(map(max, lengths))
    assert np.min(found) >= -1.0 - ROUNDING
    # The lags of all tasks sum to 0: with every other one example ahead, the last is this far behind.
    assert np.max(found) <= num_tasks - 1 + ROUNDING


def test_with_changing_shares_of_tokens_hardly_any_task_is_ever_more_than_one_longest_example_behind() -> None:
    # No theorem for three tasks or more. In some of these cases the first forecast is not good enough.
    generator = np.random.default_rng(2)
    for _ in range(60):
        num_tasks, num_stages = generator.integers(3, 13), generator.integers(2, 6)
        shares_TK = np.repeat(generator.dirichlet([0.5] * num_tasks, num_stages), 20, axis=0)
        is_long = generator.random((num_tasks, len(shares_TK) + 1)) < generator.random((num_tasks, 1))
        lengths = np.where(is_long, 4096, 8).tolist()
        sequence = task_sequence(shares_TK, length=len(shares_TK), lengths=lengths)
        found = lags(sequence, shares=shares_TK, tokens_T=drawn_tokens(sequence, lengths))
        assert np.max(found) <= 4096 + ROUNDING


@promised
@given(changing_shares(), st.integers(0, 10**6), st.booleans())
def test_no_task_is_drawn_before_its_share_begins(shares_TK: np.ndarray, seed: int, in_tokens: bool) -> None:
    length, num_tasks = shares_TK.shape
    lengths = random_lengths(num_tasks, length=length, seed=seed) if in_tokens else None
    sequence = task_sequence(shares_TK, length=length, lengths=lengths)
    has_begun_TK = np.cumsum(shares_TK, axis=0) > 0
    assert np.all(has_begun_TK[np.arange(length), sequence])


@promised
@given(runs())
def test_every_example_of_a_task_is_seen_once_before_any_is_seen_again_and_each_pass_is_a_new_shuffle(run: Run) -> None:
    order = run.order()
    for task, size in enumerate(map(len, run.lengths)):
        indices = order.indices_T[order.tasks_T == task].tolist()
        for epoch, start in enumerate(range(0, len(indices), size)):
            one_pass = example_order(size, task=task, epoch=epoch, seed=run.seed).tolist()
            assert sorted(one_pass) == list(range(size))
            assert indices[start : start + size] == one_pass[: len(indices) - start]


def lags_of_steps(run: Run, order: Order) -> np.ndarray:
    """What the course asks of each task less what it was given, at the end of every step (S, K)."""
    unit, ends = run.mixture.unit, order.step_starts_S1[1:]
    given_S = np.cumsum(order.tokens_T if unit == "tokens" else np.ones(len(order.tokens_T)))[ends - 1]
    asked_SK = np.cumsum(run.course.shares_SK * np.diff(given_S, prepend=0.0)[:, None], axis=0)
    shares = [order.realised(0, step + 1, num_tasks=len(run.lengths), unit=unit) for step in range(len(ends))]
    return asked_SK - np.array(shares) * given_S[:, None]


@settings(promised, max_examples=400)  # hypothesis likes to try much the same again, and hardly half of them change
@given(runs())
def test_at_the_end_of_every_step_each_task_has_what_was_asked_for_it_until_then(run: Run) -> None:
    found, others = lags_of_steps(run, run.order()), max(1, len(run.lengths) - 1)
    one = max(own.max() for own in run.lengths) if run.mixture.unit == "tokens" else 1
    if not run.course.is_steady and run.size.examples is None:
        ahead = behind = UNPROVEN
    elif run.mixture.unit == "examples":
        ahead = behind = 1.0 - 0.5 / others
    else:
        ahead, behind = 1.0, 1.0 if run.course.is_steady else others
    assert -ahead * one - ROUNDING <= np.min(found) <= np.max(found) <= behind * one + ROUNDING


def test_shares_that_change_are_kept_where_steps_are_measured_in_tokens() -> None:
    # One task fades out, the other in, and a step of 256 tokens has 4 examples of the one or 64 of the other.
    lengths, mixture = [np.full(40, 64), np.full(40, 4)], MixtureSection()
    course = course_of(mixture, lengths, [RampSection(ramp=(1.0, 0.0)), RampSection(ramp=(0.0, 1.0))], num_steps=4)
    run = Run(course, mixture, lengths, StepSize(num_steps=4, tokens=256), seed=17)
    assert np.max(np.abs(lags_of_steps(run, run.order()))) <= 0.5 + ROUNDING


@promised
@given(runs())
def test_a_step_takes_the_next_examples_of_the_order_as_long_as_they_fit(run: Run) -> None:
    order, size = run.order(), run.size
    steps = [order.tokens_T[start:end].tolist() for start, end in pairwise(order.step_starts_S1)]
    assert (len(steps), sum(map(len, steps)), min(map(len, steps)) > 0) == (size.num_steps, order.num_examples, True)
    # Under shares that change, the first example of the next step need not be the one that did not fit.
    longest, is_steady = max(own.max() for own in run.lengths), run.course.is_steady
    more = [[*step, after[0] if is_steady else longest] for step, after in pairwise(steps)]
    assert size.examples is None or {len(step) for step in steps} == {size.examples}
    if size.tokens is not None:
        assert max(map(sum, steps)) <= size.tokens < min([sum(step) for step in more], default=size.tokens + 1)
    if size.rows is not None:
        assert max(len(pack(step, row_tokens=ROW_TOKENS)) for step in steps) <= size.rows
        assert all(len(pack(step, row_tokens=ROW_TOKENS)) > size.rows for step in more if is_steady)
    drawn = map(order.draw, range(order.num_examples))
    assert order.tokens_T.tolist() == [run.lengths[draw.task][draw.index] for draw in drawn]


@promised
@given(runs(), st.integers(1, 8), st.integers(1, 4), st.sampled_from([None, ROW_TOKENS]))
def test_the_ranks_of_any_world_deal_the_same_examples_among_them(
    run: Run, world_size: int, size: int, row_tokens: int | None
) -> None:
    order = run.order()
    with tempfile.TemporaryDirectory() as folder:
        tasks = run.tasks(Path(folder))
        for step in range(run.size.num_steps):
            ranks = dealt(tasks, step, world_size=world_size, size=size, row_tokens=row_tokens, order=order)
            found = [pair for rank in ranks for batch in rank for pair in contents(batch).items()]
            assert sorted(found) == sorted(wanted_contents(tasks, step, order=order).items())
            assert len({len(rank) for rank in ranks}) == 1
            assert max(len(batch.input_ids_BT) for rank in ranks for batch in rank) <= size


def values(batches: list[Batch]) -> list[list[object]]:
    return [[one.tolist() if isinstance(one, torch.Tensor) else one for one in astuple(batch)] for batch in batches]


@promised
@given(runs(), st.integers(1, 3), st.sampled_from([None, ROW_TOKENS]), st.data())
def test_a_run_resumed_anywhere_goes_on_with_the_same_batches(
    run: Run, world_size: int, row_tokens: int | None, data: st.DataObject
) -> None:
    rank, start = data.draw(st.integers(0, world_size - 1)), data.draw(st.integers(0, run.size.num_steps - 1))
    layout = {"rank": rank, "world_size": world_size, "size": 2, "row_tokens": row_tokens}
    with tempfile.TemporaryDirectory() as folder:
        tasks = run.tasks(Path(folder))
        opened = [TaskData(task.name, Path(folder) / task.name) for task in tasks]
        whole, resumed = (batches_of(own, order=run.order(), **layout) for own in (tasks, opened))
        seen = [values(whole.at(step)) for step in range(run.size.num_steps)]
        assert [values(resumed.at(step)) for step in range(start, run.size.num_steps)] == seen[start:]

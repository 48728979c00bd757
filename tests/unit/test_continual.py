"""Measures of a sequence of stages: matrices worked by hand, a published table, and laws that hold for every matrix."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.errors import InputError
from trainer.evaluation.continual import (
    ContinualMatrix,
    ability_delta,
    average_accuracy,
    average_over_time,
    backward_transfer,
    forgetting,
    forgetting_by_task,
    forward_transfer,
    intransigence,
    stability_gap,
    stage_scores,
    worst_delta,
)

ROUNDING = 1e-12

THREE_STAGES = ContinualMatrix(
    stages=("base", "first", "second", "third"),
    tasks=("a", "b", "c"),
    learnt_in=(1, 2, 3),
    scores_RT=((0.10, 0.20, 0.30), (0.90, 0.25, 0.35), (0.95, 0.80, 0.50), (0.60, 0.70, 0.85)),
)
TWO_STAGES = ContinualMatrix(
    stages=("base", "first", "second"),
    tasks=("knowledge", "a", "a again", "b"),
    learnt_in=(0, 1, 1, 2),
    scores_RT=((0.7, 0.0, 0.2, 0.1), (0.4, 0.8, 0.6, 0.3), (0.5, 0.2, 0.8, 0.9)),
)


def test_accuracy_is_the_mean_of_the_last_row() -> None:
    # (0.60 + 0.70 + 0.85) / 3
    assert average_accuracy(THREE_STAGES) == pytest.approx(2.15 / 3, abs=ROUNDING)


def test_accuracy_on_the_way_is_of_the_stages_so_far() -> None:
    # After stage 1: 0.90; after stage 2: (0.95 + 0.80) / 2; over time the mean of the three.
    assert average_accuracy(THREE_STAGES, after_stage=1) == 0.90
    assert average_accuracy(THREE_STAGES, after_stage=2) == pytest.approx(0.875, abs=ROUNDING)
    assert average_over_time(THREE_STAGES) == pytest.approx((0.90 + 0.875 + 2.15 / 3) / 3, abs=ROUNDING)
    with pytest.raises(InputError, match="stage 4 is none of 1 to 3"):
        average_accuracy(THREE_STAGES, after_stage=4)


def test_backward_transfer_is_the_last_score_minus_the_first() -> None:
    # ((0.60 - 0.90) + (0.70 - 0.80)) / 2
    assert backward_transfer(THREE_STAGES) == pytest.approx(-0.2, abs=ROUNDING)


def test_forward_transfer_is_before_learning_minus_the_base() -> None:
    # ((R[1,2] - R[0,2]) + (R[2,3] - R[0,3])) / 2 = ((0.25 - 0.20) + (0.50 - 0.30)) / 2
    assert forward_transfer(THREE_STAGES) == pytest.approx(0.125, abs=ROUNDING)


def test_forgetting_is_the_best_ever_minus_the_last() -> None:
    # a: max(0.90, 0.95) - 0.60 = 0.35, where first minus last is only 0.30; b: max(0.25, 0.80) - 0.70 = 0.10.
    assert forgetting(THREE_STAGES) == pytest.approx(0.225, abs=ROUNDING)
    assert forgetting_by_task(THREE_STAGES) == pytest.approx({"a": 0.35, "b": 0.10}, abs=ROUNDING)


def test_the_base_row_is_not_a_stage_that_learnt_a_task() -> None:
    # The base was better at a than any stage: the loss from 0.99 is no forgetting of what stage 1 taught.
    able_base = ((0.99, 0.20, 0.30), *THREE_STAGES.scores_RT[1:])
    matrix = replace(THREE_STAGES, scores_RT=able_base)
    assert forgetting(matrix) == pytest.approx(0.225, abs=ROUNDING)
    assert forgetting_by_task(matrix)["a"] == pytest.approx(0.35, abs=ROUNDING)


def test_the_last_row_is_not_among_the_best_so_far() -> None:
    # a rises from 0.90 to 1.0 in the last stage: forgetting is 0.90 - 1.0, below zero.
    matrix = ContinualMatrix(
        stages=("base", "first", "second"), tasks=("a", "b"), learnt_in=(1, 2), scores_RT=((0, 0), (0.9, 0), (1.0, 1.0))
    )
    assert forgetting(matrix) == pytest.approx(-0.1, abs=ROUNDING)


def test_tasks_of_one_stage_count_as_their_mean_and_base_abilities_not_at_all() -> None:
    # Stage 1: (0.8 + 0.6) / 2 = 0.7, then (0.2 + 0.8) / 2 = 0.5; stage 2: 0.3, then 0.9.
    assert stage_scores(TWO_STAGES)[1:] == (pytest.approx((0.7, 0.3)), pytest.approx((0.5, 0.9)))
    assert average_accuracy(TWO_STAGES) == pytest.approx(0.7, abs=ROUNDING)
    assert backward_transfer(TWO_STAGES) == pytest.approx(-0.2, abs=ROUNDING)
    assert forward_transfer(TWO_STAGES) == pytest.approx(0.2, abs=ROUNDING)
    assert forgetting(TWO_STAGES) == pytest.approx(0.2, abs=ROUNDING)


def test_an_ability_of_the_base_is_forgotten_from_the_base_on() -> None:
    # knowledge: max(0.7, 0.4) - 0.5; a: 0.8 - 0.2; a again: 0.6 - 0.8; b is of the last stage.
    expected = {"knowledge": 0.2, "a": 0.6, "a again": -0.2}
    assert forgetting_by_task(TWO_STAGES) == pytest.approx(expected, abs=ROUNDING)


def test_intransigence_is_the_reference_minus_the_fresh_score() -> None:
    # 0.92 - 0.90, 0.90 - 0.80, 0.80 - 0.85: the last stage does better than joint training.
    costs = intransigence(THREE_STAGES, reference=(0.92, 0.90, 0.80))
    assert costs == pytest.approx((0.02, 0.10, -0.05), abs=ROUNDING)
    for reference in ((0.9, 0.9), (0.9, 0.9, math.nan)):
        with pytest.raises(InputError, match="one finite score for each of 3 stages"):
            intransigence(THREE_STAGES, reference=reference)


def test_what_one_stage_cannot_show_is_none() -> None:
    one = ContinualMatrix(
        stages=("base", "only"), tasks=("a", "g"), learnt_in=(1, 0), scores_RT=((0.1, 0.9), (0.5, 0.6))
    )
    assert (backward_transfer(one), forward_transfer(one), forgetting(one)) == (None, None, None)
    assert (average_accuracy(one), average_over_time(one)) == (0.5, 0.5)
    assert forgetting_by_task(one) == pytest.approx({"g": 0.3}, abs=ROUNDING)
    base = ContinualMatrix(stages=("base",), tasks=("g",), learnt_in=(0,), scores_RT=((0.9,),))
    assert (average_accuracy(base), average_over_time(base), backward_transfer(base)) == (None, None, None)
    assert (forgetting_by_task(base), intransigence(base, reference=())) == ({}, ())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"stages": ("base", "first", "first")}, "a name of its own"),
        ({"tasks": ("a", "a", "b", "c")}, "a name of its own"),
        ({"stages": ("start", "first", "second")}, "the first must be 'base'"),
        ({"stages": ()}, "the first must be 'base'"),
        ({"scores_RT": TWO_STAGES.scores_RT[:2]}, "2 rows of .4. scores, wanted 3 rows"),
        ({"scores_RT": (*TWO_STAGES.scores_RT[:2], (0.1,))}, "1, 4"),
        ({"scores_RT": (*TWO_STAGES.scores_RT[:2], (0.1, 0.1, math.nan, 0.1))}, "not finite"),
        ({"learnt_in": (0, 1, 2)}, "3 entries"),
        ({"learnt_in": (0, 1, 2, 3)}, "there are 0 to 2"),
        ({"learnt_in": (0, 1, 2, -1)}, "there are 0 to 2"),
        ({"learnt_in": (0, 1, 1, 0)}, "in stage.s. second"),
    ],
)
def test_what_is_no_matrix_is_refused_in_one_line(change: dict, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        replace(TWO_STAGES, **change)
    assert "\n" not in str(caught.value)


TRACE_ABILITIES = ("MMLU", "GSM", "BBH", "TydiQA", "BoolQ", "PIQA")
LLAMA_7B = (46.56, 26.08, 40.23, 23.47, 70.55, 76.22)
LLAMA_13B = (54.61, 43.14, 49.70, 27.65, 81.5, 78.24)
TRACE_ROWS = [
    (LLAMA_7B, (46.43, 3.49, 30.11, 33.23, 77.89, 76.5), -2.58),
    (LLAMA_7B, (42.28, 14.71, 33.61, 21.72, 53.43, 75.19), -7.03),
    (LLAMA_13B, (47.72, 2.96, 36.52, 32.52, 82.45, 76.88), -9.3),
]
"""General abilities of LLaMA-2-Chat before and after training, and the published mean delta (TRACE, Wang et al. 2023):
7B sequential, 7B LoRA, 13B with replay."""

TRACE_ROWS_A_HUNDREDTH_OFF = [
    (LLAMA_7B, (47.04, 3.03, 36.61, 31.57, 75.75, 75.3), -2.30, -2.31),
    (LLAMA_13B, (41.88, 2.12, 19.47, 32.27, 82.08, 77.15), -13.31, -13.32),
    (LLAMA_13B, (50.63, 24.72, 38.98, 26.93, 68.96, 78.02), -7.77, -7.78),
]
"""As above, 7B with replay, 13B sequential, 13B LoRA: the printed scores give the first number, the paper prints the
second. Scores of two decimals allow it: each delta is known to 0.01, so their mean is too."""

TRACE_RESOLUTION = 0.01 + 0.005
"""Rounding of the scores and of the published mean."""


def named(scores: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(TRACE_ABILITIES, scores, strict=True))


@pytest.mark.parametrize(("before", "after", "published"), TRACE_ROWS)
def test_the_mean_delta_of_abilities_reproduces_traces_table(
    before: tuple[float, ...], after: tuple[float, ...], published: float
) -> None:
    assert round(ability_delta(named(before), named(after)), 2) == published


@pytest.mark.parametrize(("before", "after", "of_the_scores", "published"), TRACE_ROWS_A_HUNDREDTH_OFF)
def test_three_rows_of_the_table_follow_from_its_scores_only_to_their_rounding(
    before: tuple[float, ...], after: tuple[float, ...], of_the_scores: float, published: float
) -> None:
    delta = ability_delta(named(before), named(after))
    assert round(delta, 2) == of_the_scores
    assert abs(delta - published) < TRACE_RESOLUTION


def test_a_small_mean_delta_hides_a_lost_ability() -> None:
    # Of 7B sequential: -2.58 in the mean, while GSM fell by 26.08 - 3.49.
    name, delta = worst_delta(named(LLAMA_7B), named(TRACE_ROWS[0][1]))
    assert (name, delta) == ("GSM", pytest.approx(-22.59, abs=ROUNDING))


def test_equally_bad_abilities_are_named_in_order() -> None:
    assert worst_delta({"b": 1.0, "a": 1.0}, {"a": 0.5, "b": 0.5}) == ("a", -0.5)


@pytest.mark.parametrize(("before", "after"), [({}, {}), ({"a": 1.0}, {"b": 1.0}), ({"a": 1.0}, {"a": 1.0, "b": 1.0})])
def test_other_abilities_before_and_after_are_refused(before: dict, after: dict) -> None:
    for measure in (ability_delta, worst_delta):
        with pytest.raises(InputError, match="Measure the same ones"):
            measure(before, after)


def test_the_stability_gap_is_the_deepest_fall_below_the_end_of_the_stage() -> None:
    assert stability_gap([0.9, 0.4, 0.7, 0.8], at_stage_end=0.8) == pytest.approx(-0.4, abs=ROUNDING)
    assert stability_gap([0.9, 0.85], at_stage_end=0.8) == pytest.approx(0.05, abs=ROUNDING)
    assert stability_gap([], at_stage_end=0.8) is None


@st.composite
def matrices(draw: st.DrawFn) -> ContinualMatrix:
    num_stages = draw(st.integers(2, 5))
    extra = draw(st.lists(st.integers(0, num_stages), max_size=3))
    learnt_in = tuple(draw(st.permutations([*range(1, num_stages + 1), *extra])))
    row = st.tuples(*[st.floats(0, 1) for _ in learnt_in])
    return ContinualMatrix(
        stages=("base", *(f"stage {number}" for number in range(1, num_stages + 1))),
        tasks=tuple(f"task {number}" for number in range(len(learnt_in))),
        learnt_in=learnt_in,
        scores_RT=tuple(draw(row) for _ in range(num_stages + 1)),
    )


def summary(matrix: ContinualMatrix) -> list[float | None]:
    measures = (average_accuracy, average_over_time, backward_transfer, forward_transfer, forgetting)
    return [measure(matrix) for measure in measures]


@given(matrices())
def test_backward_transfer_is_minus_the_mean_of_first_minus_last(matrix: ContinualMatrix) -> None:
    def score(stage: int, after: int) -> float:
        of_stage = [task for task, learnt in enumerate(matrix.learnt_in) if learnt == stage]
        return fmean(matrix.scores_RT[after][task] for task in of_stage)

    last = len(matrix.stages) - 1
    first_minus_last = fmean(score(stage, stage) - score(stage, last) for stage in range(1, last))
    transfer, forgot = backward_transfer(matrix), forgetting(matrix)
    assert transfer is not None
    assert forgot is not None
    assert transfer == pytest.approx(-first_minus_last, abs=ROUNDING)
    assert forgot >= -transfer - ROUNDING


@given(matrices())
def test_names_have_no_effect(matrix: ContinualMatrix) -> None:
    renamed = replace(
        matrix,
        stages=("base", *(f"s{number}" for number in range(matrix.num_stages, 0, -1))),
        tasks=tuple(reversed(matrix.tasks)),
    )
    assert summary(renamed) == summary(matrix)
    assert list(forgetting_by_task(renamed).values()) == list(forgetting_by_task(matrix).values())


@given(matrices(), st.randoms(use_true_random=False))
def test_the_order_of_the_tasks_has_no_effect(matrix: ContinualMatrix, random) -> None:
    order = list(range(len(matrix.tasks)))
    random.shuffle(order)
    shuffled = replace(
        matrix,
        tasks=tuple(matrix.tasks[task] for task in order),
        learnt_in=tuple(matrix.learnt_in[task] for task in order),
        scores_RT=tuple(tuple(row[task] for task in order) for row in matrix.scores_RT),
    )
    assert summary(shuffled) == pytest.approx(summary(matrix), abs=ROUNDING)
    assert forgetting_by_task(shuffled) == forgetting_by_task(matrix)


@given(matrices(), st.floats(0, 1))
def test_a_model_that_never_changes_neither_forgets_nor_transfers(matrix: ContinualMatrix, score: float) -> None:
    constant = replace(matrix, scores_RT=tuple((score,) * len(matrix.tasks) for _ in matrix.stages))
    assert summary(constant) == pytest.approx([score, score, 0, 0, 0], abs=ROUNDING)
    assert set(forgetting_by_task(constant).values()) <= {0}

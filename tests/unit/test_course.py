"""Weights that change, stages and replay: worked by hand, then for any. Shapes: K tasks, S steps, T positions."""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.config.course_schema import RampSection, ReplaySection, StageSection, StepsSection, course_complaint
from trainer.config.errors import ConfigError
from trainer.data.course import Course, position_shares
from trainer.data.mixture import task_sequence

ROUNDING = 1e-12
AB = {"a": 1, "b": 1}
for_any_course = settings(deadline=None, derandomize=True, max_examples=100, database=None)


@dataclass(frozen=True)
class Case:
    """A configuration as the user writes it, and the run that it is for."""

    tasks: dict[str, Any]
    num_steps: int
    stages: tuple[dict[str, Any], ...] = ()
    replay: dict[str, Any] | None = None
    base: tuple[float, ...] = ()

    def sections(self) -> dict[str, Any]:
        stages = [StageSection.model_validate(stage) for stage in self.stages]
        return {"stages": stages, "replay": self.replay and ReplaySection.model_validate(self.replay)}

    def weights(self) -> dict[str, Any]:
        return StageSection(share_of_steps=1, weights=self.tasks).weights

    def complaint(self) -> str | None:
        return course_complaint(self.weights(), **self.sections())

    def course(self) -> Course:
        names, base = list(self.tasks), self.base or (1.0,) * len(self.tasks)
        return Course(names=names, base=base, weights=self.weights(), num_steps=self.num_steps, **self.sections())


def stage(length: float = 1.0, *, replay: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    return {"share_of_steps": length, "weights": weights, "replay": replay}


def rows(num_steps: int, *stages: dict[str, Any], **tasks: Any) -> list[Any]:
    """The shares of all steps. Where there are stages, each task is named with any weight."""
    found = Case(tasks, num_steps, stages).course().shares_SK
    return [pytest.approx(row, abs=ROUNDING) for row in found.tolist()]


def test_weights_that_stay_are_the_shares_to_the_last_bit() -> None:
    # So that the order of a run without schedules is the same as from the weights over their sum.
    weights = np.array([3.0, 0.7, 1.1])
    course = Case(dict(zip("abc", weights.tolist(), strict=True)), 5).course()
    assert course.is_steady
    assert all(np.array_equal(course.shares_at(step), weights / weights.sum()) for step in range(5))


def test_a_ramp_goes_from_its_first_value_in_the_first_step_to_its_last_in_the_last() -> None:
    # Weights 0, 0.5, 1, 1.5, 2 beside 1.
    assert rows(5, a=1, b={"ramp": [0, 2]}) == [[1, 0], [2 / 3, 1 / 3], [1 / 2, 1 / 2], [2 / 5, 3 / 5], [1 / 3, 2 / 3]]
    # In a single step: 3 beside 1.
    assert rows(1, a=1, b={"ramp": [0, 3]}) == [[0.25, 0.75]]


def test_steps_begin_where_their_part_of_the_steps_is_over() -> None:
    # Four steps: 0, 1/4, 2/4 and 3/4 are over. Five: 0.4 in the third, 0.6 in the fourth.
    later = {"steps": {0.5: 3, 0: 1}}
    assert rows(4, a=1, b=later) == [[0.5, 0.5], [0.5, 0.5], [0.25, 0.75], [0.25, 0.75]]
    assert [row == [0.25, 0.75] for row in rows(5, a=1, b=later)] == [False, False, False, True, True]


def test_schedules_go_over_their_stage() -> None:
    # Two stages of two steps: the ramp has its ends in steps 2 and 3, the steps change in step 3.
    second = stage(a=1, b={"ramp": [1, 3]}, c={"steps": {0: 2, 0.5: 0}})
    assert rows(4, stage(a=1), second, a=1, b=1, c=1) == [[1, 0, 0], [1, 0, 0], [0.25, 0.25, 0.5], [0.25, 0.75, 0]]


def test_the_base_of_a_task_multiplies_its_weight_on_any_scale() -> None:
    # 4 * 1 and 1 * 2 of 6; then 4 * 1 and 1 * 4 of 8.
    course = Case({"a": 1, "b": {"ramp": [2, 4]}}, 2, base=(4e-9, 1e-9)).course()
    assert course.shares_SK == pytest.approx(np.array([[2 / 3, 1 / 3], [1 / 2, 1 / 2]]), abs=ROUNDING)


def test_stages_begin_at_the_nearest_step() -> None:
    # 10 / 3 = 3.33 and 20 / 3 = 6.67.
    course = Case({"a": 1}, 10, (stage(a=1),) * 3).course()
    assert course.stage_starts == [0, 3, 7]
    assert [course.stage_of(step) for step in range(10)] == [0] * 3 + [1] * 4 + [2] * 3
    assert Case({"a": 1}, 10, (stage(0.4, a=1), stage(0.6, a=1))).course().stage_starts == [0, 4]
    assert Case({"a": 1}, 10).course().stage_starts == [0]


def test_a_stage_that_is_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data\.stages\.1\.share_of_steps: 0\.01 of 2\.01, which is no .* 100\."):
        Case({"a": 1}, 100, (stage(a=1), stage(0.01, a=1), stage(a=1))).course()


def test_replayed_tasks_have_their_share_at_every_step() -> None:
    # 0.8 is left: of it b has 0, 1/2 and 2/3, and a the rest.
    case = Case({"a": 1, "b": {"ramp": [0, 2]}, "p": 0, "q": 0}, 3, replay={"tasks": {"p": 0.05, "q": 0.15}})
    wanted = [[0.8, 0, 0.05, 0.15], [0.4, 0.4, 0.05, 0.15], [0.8 / 3, 1.6 / 3, 0.05, 0.15]]
    assert case.course().shares_SK == pytest.approx(np.array(wanted), abs=ROUNDING)


def test_earlier_tasks_are_replayed_as_they_were_learned_over_all_earlier_steps() -> None:
    # Stage 0, one step: a. Stage 1, three steps: a and b alike, but for 0.5 of replayed p. Stage 2, one step: c.
    # Own shares of a: 1 + 3 / 2 = 2.5, of b: 3 / 2; so 0.4 is 0.4 * 2.5 / 4 = 0.25 and 0.4 * 1.5 / 4 = 0.15.
    second = stage(3, a=1, b=1, replay={"tasks": {"p": 0.5}})
    found = rows(5, stage(a=1), second, stage(c=1, replay={"earlier": 0.4}), a=1, b=1, c=1, p=0)
    assert found == [[1, 0, 0, 0], *[[0.25, 0.25, 0, 0.5]] * 3, [0.25, 0.15, 0.6, 0]]


def test_what_a_stage_learns_or_replays_by_name_is_no_part_of_what_it_replays_from_earlier() -> None:
    # Of a, b and c, only a is left.
    second = stage(b=1, replay={"earlier": 0.3, "tasks": {"c": 0.1}})
    assert rows(2, stage(a=1, b=2, c=7), second, a=1, b=1, c=1) == [[0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]


def test_the_replay_of_the_data_holds_for_stages_without_their_own() -> None:
    # Stage 0 has nothing earlier; stage 1 has the default; stage 2 its own, which is none.
    stages = (stage(a=1), stage(b=1), stage(c=1, replay={"earlier": 0}))
    case = Case({"a": 1, "b": 1, "c": 1, "p": 0}, 3, stages, {"earlier": 0.25, "tasks": {"p": 0.5}})
    assert case.course().shares_SK.tolist() == [[0.5, 0, 0, 0.5], [0.25, 0.25, 0, 0.5], [0, 0, 1, 0]]


def test_only_a_course_whose_shares_never_change_is_steady() -> None:
    assert Case({"a": 1, "b": 2}, 6, (stage(a=1, b=2), stage(2, a=1, b=2))).course().is_steady
    assert not Case({"a": 1, "b": 2}, 6, (stage(a=1, b=2), stage(a=2, b=1))).course().is_steady
    assert not Case({"a": 1, "b": {"ramp": [1, 2]}}, 6).course().is_steady


def test_every_position_has_the_shares_of_its_step() -> None:
    shares_SK = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    assert position_shares(shares_SK, step_starts=np.array([0, 2, 2, 5]))[:, 1].tolist() == [0, 0, 1, 1, 1]


def test_schedules_that_are_zero_in_all_steps_that_there_are_stop_with_the_key() -> None:
    # Of four steps, the last begins when 0.75 is over: the weight at 0.9 never comes.
    never = {"steps": {0: 0, 0.9: 1}}
    with pytest.raises(ConfigError, match=r"^data\.tasks: no task has a weight above 0 in step 3 of 4"):
        _ = Case({"a": {"ramp": [1, 0]}, "b": never}, 4).course().shares_SK
    with pytest.raises(ConfigError, match=r"^data\.stages\.1\.replay\.earlier: nothing is left .* in data\.stages\.1:"):
        _ = Case(AB, 8, (stage(a=1, b=never), stage(a=1, replay=SOME))).course().shares_SK


def test_a_stage_is_read_as_yaml_gives_it_and_from_its_resolved_copy() -> None:
    found = StageSection.model_validate(stage(a=2, b={"ramp": [0, 1]}, c={"steps": {0: 1, 0.5: 3}}))
    assert found.weights == {"a": 2.0, "b": RampSection(ramp=(0.0, 1.0)), "c": StepsSection(steps={0.0: 1.0, 0.5: 3.0})}
    assert StageSection.model_validate(found.model_dump(mode="json")) == found


ANY_WEIGHT = "Input should be a number of at least 0, {ramp: [first, last]} or {steps: {0.0: weight"


@pytest.mark.parametrize(
    ("weight", "place", "message"),
    [
        *((weight, (), ANY_WEIGHT) for weight in (-1, True, "5", float("inf"), {"slope": 1}, {"ramp": 0, "steps": 0})),
        ({"ramp": [1, -1]}, ("ramp", "ramp", 1), "Input should be greater than or equal to 0"),
        ({"ramp": [0, 0]}, ("ramp",), "Value error, the weight stays 0; raise one of its ends"),
        ({"steps": {0: 1, 1.0: 2}}, ("steps", "steps", "1.0", "[key]"), "Input should be less than 1"),
        ({"steps": {0.5: 1, 0.2: 1}}, ("steps",), "Value error, gives weights from progress 0.2, 0.5 on; add the"),
        ({"steps": {0: 0, 0.5: 0}}, ("steps",), "Value error, the weight stays 0; raise one of the values"),
    ],
)
def test_a_weight_of_no_kind_gives_one_complaint_at_its_key(weight: Any, place: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StageSection.model_validate(stage(a=weight))
    assert [found["loc"] for found in caught.value.errors()] == [("weights", "a", *place)]
    assert caught.value.errors()[0]["msg"].startswith(message)


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        ({}, "an empty replay; give `earlier`, `tasks` or both (`earlier: 0` for no replay)"),
        ({"earlier": 0.5, "tasks": {"a": 0.5}}, "`earlier` and `tasks` sum to 1, which leaves nothing to learn"),
    ],
)
def test_a_replay_must_replay_something_and_leave_room(replay: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        ReplaySection.model_validate(replay)


A, B, UP, DOWN = stage(a=1), stage(b=1), {"ramp": [0, 1]}, {"ramp": [1, 0]}
SOME, OF_B, OF_C = {"earlier": 0.1}, {"tasks": {"b": 0.1}}, {"tasks": {"c": 0.1}}
TWO_PAUSES = stage(a={"steps": {0: 1, 0.7: 0}}, b={"steps": {0: 1, 0.2: 0, 0.8: 1}})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case(AB, 9, replay=OF_C), "data.replay.tasks.c: no task has this name; the tasks are a, b"),
        (Case(AB, 9, (A, stage(c=1))), "data.stages.1.weights.c: no task has this name"),
        (Case(AB, 9, (A, stage(b=1, replay=OF_C))), "data.stages.1.replay.tasks.c: no task has this name"),
        (Case(AB, 9, replay=SOME), "data.replay.earlier: 0.1, but no stage has an earlier one; add data.stages"),
        (Case(AB, 9, (stage(a=1, b=1),), SOME), "data.replay.earlier: 0.1, but no stage has an earlier one"),
        (Case(AB, 9, (stage(a=1, replay=SOME), B)), "data.stages.0.replay.earlier: 0.1, but nothing comes before"),
        (Case({"a": 1, "b": UP}, 9, (A, B)), "data.tasks.b.weight: a schedule, but the weights of data.stages count"),
        (Case(AB, 9, replay=OF_B), "data.tasks.b.weight: data.replay.tasks sets a share for this task too"),
        (Case(AB, 9, (A, B), OF_B), "data.stages.1.weights.b: data.replay.tasks sets a share for this task too"),
        (Case(AB, 9, (A, stage(b=1, replay=OF_B))), "data.stages.1.weights.b: data.stages.1.replay.tasks sets a"),
        (Case({"a": UP, "b": UP}, 9), "data.tasks: no task has a weight above 0 at progress 0; give one such"),
        (Case(AB, 9, (stage(a=1, b=1), stage(a=0))), "data.stages.1: no task has a weight above 0 at progress 0;"),
        (Case(AB, 9, (A, stage(b=DOWN))), "data.stages.1: no task has a weight above 0 at progress 1;"),
        (Case(AB, 9, (TWO_PAUSES,)), "data.stages.0: no task has a weight above 0 at progress 0.7;"),
        (Case(AB, 9, (A, B, stage(a=1, b=1)), SOME), "data.replay.earlier: nothing is left to replay in data.stages.2"),
        (Case(AB, 9, (B, stage(a=1, replay={**SOME, **OF_B}))), "data.stages.1.replay.earlier: nothing is left to"),
        (Case({"a": 1, "b": 0}, 9), "data.tasks.b: never trained on: its weight is 0 and no replay names it;"),
        (Case(AB, 9, (A, stage(a=1, b=0))), "data.tasks.b: never trained on: no stage gives it a weight and no replay"),
        (Case(AB, 9, (stage(a=1, replay={"earlier": 0}),), OF_B), "data.tasks.b: never trained on: no stage gives it"),
    ],
)
def test_a_course_that_contradicts_itself_is_refused_with_its_key(case: Case, message: str) -> None:
    assert (case.complaint() or "").startswith(message)


def test_a_course_with_all_that_there_is_draws_no_complaint() -> None:
    second = stage(0.6, c=UP, b={"steps": {0.0: 1, 0.5: 3}}, replay={"earlier": 0.1, "tasks": {"p": 0.05}})
    replay = {"earlier": 0.2, "tasks": {"p": 0.02}}
    assert Case({"a": 5, "b": 1, "c": 1, "p": 0}, 9, (stage(0.4, a=5, b=1), second), replay).complaint() is None
    assert Case({"a": UP, "b": DOWN, "c": 0}, 9, replay=OF_C).complaint() is None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Courses of stages with whole numbers of steps, two or more each, that nothing is wrong with."""
    names = list("abcdef"[: draw(st.integers(2, 6))])
    constants, values = st.sampled_from([0.01, 1, 3, 40]), st.sampled_from([0, 0.1, 5])
    ramps = st.tuples(values, values).filter(any).map(lambda ends: {"ramp": ends})
    steps = st.tuples(values, constants).map(lambda pair: {"steps": {0.5: pair[1], 0: pair[0]}})
    stages: list[dict[str, Any]] = []
    learned: set[str] = set()
    for _ in range(draw(st.integers(1, 4))):
        own = sorted(draw(st.sets(st.sampled_from(names), min_size=1)))
        replayed = sorted(draw(st.sets(st.sampled_from(names))) - set(own))
        share = draw(st.floats(0.01, 0.12))
        replay = {"earlier": 2 * share if learned - {*own, *replayed} else 0, "tasks": dict.fromkeys(replayed, share)}
        weights = {name: draw(constants | ramps | steps) for name in own[1:]}
        stages.append(stage(draw(st.integers(2, 30)), replay=replay, **{own[0]: draw(constants), **weights}))
        learned.update(own)
    trained = [name for name in names if any(name in {**s["weights"], **s["replay"]["tasks"]} for s in stages)]
    num_steps, base = sum(s["share_of_steps"] for s in stages), tuple(draw(st.floats(0.01, 100)) for _ in trained)
    return Case(dict.fromkeys(trained, 1), num_steps, tuple(stages), base=base)


@for_any_course
@given(cases())
def test_at_every_step_the_shares_sum_to_one_and_each_replay_has_exactly_its_own(case: Case) -> None:
    course = case.course()
    assert not course.shares_SK.flags.writeable
    assert np.min(course.shares_SK) >= 0
    assert np.max(np.abs(course.shares_SK.sum(axis=1) - 1)) <= ROUNDING
    for step, row in enumerate(course.shares_SK.tolist()):
        number, shares = course.stage_of(step), dict(zip(case.tasks, row, strict=True))
        own, replay = case.stages[number]["weights"], case.stages[number]["replay"]
        assert {name: shares.pop(name) for name in replay["tasks"]} == replay["tasks"]
        past = {name: share for name, share in shares.items() if name not in own}
        assert sum(past.values()) == pytest.approx(replay["earlier"], abs=ROUNDING)
        assert {name for name in past if past[name]} <= {n for s in case.stages[:number] for n in s["weights"]}


@for_any_course
@given(cases())
def test_the_last_stage_does_not_depend_on_the_order_of_those_before_it(case: Case) -> None:
    # Those before it replay nothing here, so that they may come in any order.
    *before, last = [{**s, "replay": {**s["replay"], "earlier": 0}} for s in case.stages[:-1]] + [case.stages[-1]]
    length = last["share_of_steps"]
    found = [replace(case, stages=(*o, last)).course().shares_SK[-length:] for o in (before, before[::-1])]
    assert np.max(np.abs(found[0] - found[1])) <= ROUNDING


@for_any_course
@given(st.lists(st.floats(0.5, 20), min_size=1, max_size=6), st.integers(300, 999))
def test_stages_cover_all_steps_in_their_order_and_in_their_proportions(lengths: list[float], num_steps: int) -> None:
    course = Case({"a": 1}, num_steps, tuple(stage(length, a=1) for length in lengths)).course()
    wanted = np.cumsum([0.0, *lengths[:-1]]) / sum(lengths) * num_steps
    assert np.max(np.abs(course.stage_starts - wanted)) <= 0.5 + ROUNDING * num_steps
    counts = np.diff([*course.stage_starts, num_steps])
    assert [course.stage_of(s) for s in range(num_steps)] == np.repeat(range(len(lengths)), counts).tolist()


@for_any_course
@given(cases(), st.integers(1, 4))
def test_the_order_of_a_course_has_each_task_as_often_as_asked_to_within_one_example(case: Case, each: int) -> None:
    course = case.course()
    shares_TK = position_shares(course.shares_SK, step_starts=np.arange(case.num_steps + 1) * each)
    asked_TK = [course.shares_at(position // each) for position in range(len(shares_TK))]
    drawn_TK = np.eye(len(case.tasks))[task_sequence(shares_TK, length=len(asked_TK))]
    assert np.max(np.abs(np.cumsum(drawn_TK - asked_TK, axis=0))) < 1

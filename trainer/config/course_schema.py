"""What a user can ask of the mixture over time: weights that change, stages in sequence, and replay.

Holds the rules across these sections too. What shares follow from them is the business of trainer/data/course.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, model_validator

from trainer.config.sections import Name, Section

NonNegative = Annotated[float, Field(ge=0.0)]


class RampSection(Section):
    """A weight that goes in a straight line from one value to another."""

    ramp: Annotated[tuple[NonNegative, NonNegative], Field(strict=False)]
    """Weight in the first step and in the last step of the stage, or of the run where there are no stages."""

    @model_validator(mode="after")
    def _is_not_zero_throughout(self) -> Self:
        if not any(self.ramp):
            raise ValueError("the weight stays 0; raise one of its ends, or write 0 instead of a ramp")
        return self


class StepsSection(Section):
    """A weight that jumps from one value to the next."""

    # Not strict, because keys are words in a resolved configuration: JSON has no other keys.
    steps: dict[Annotated[float, Field(ge=0.0, lt=1.0, strict=False)], NonNegative]
    """Weight from each progress on, up to the next one. Progress is the part of the stage (of the run where there are
    no stages) that is over: 0 in its first step, and below 1."""

    @model_validator(mode="after")
    def _begins_at_the_start(self) -> Self:
        if 0.0 not in self.steps:
            progresses = ", ".join(f"{progress:g}" for progress in sorted(self.steps)) or "nothing"
            raise ValueError(f"gives weights from progress {progresses} on; add the weight at the start, `0.0: ...`")
        if not any(self.steps.values()):
            raise ValueError("the weight stays 0; raise one of the values, or write 0 instead of steps")
        return self


def _kind_of_weight(given: object) -> str | None:
    """Tag of `Weight`; None where it is none of its kinds. Beside it, pydantic would complain about every kind."""
    match given:
        case RampSection():
            return "ramp"
        case StepsSection():
            return "steps"
        case {"ramp": _, **others} if not others:
            return "ramp"
        case {"steps": _, **others} if not others:
            return "steps"
        case bool():
            return None
        case int() | float() if 0 <= given < float("inf"):
            return "number"
    return None


Weight = Annotated[
    Annotated[float, Tag("number")] | Annotated[RampSection, Tag("ramp")] | Annotated[StepsSection, Tag("steps")],
    Discriminator(
        _kind_of_weight,
        custom_error_type="weight",
        custom_error_message="Input should be a number of at least 0, {ramp: [first, last]} "
        "or {steps: {0.0: weight, later progress: weight}}",
    ),
]
"""A constant, or a schedule over the stage. Only its size relative to the other tasks' weights matters."""


class ReplaySection(Section):
    """Shares of the training that are set aside, at every step, for what a model should not forget."""

    earlier: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the tasks of earlier stages, in the proportions they had there. 0 in the first stage."""

    tasks: Annotated[dict[Name, Annotated[float, Field(gt=0.0, lt=1.0)]], Field(default_factory=dict)]
    """Share of each named task, such as a general corpus."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("an empty replay; give `earlier`, `tasks` or both (`earlier: 0` for no replay)")
        if self.share >= 1.0:
            raise ValueError(f"`earlier` and `tasks` sum to {self.share:g}, which leaves nothing to learn; lower them")
        return self

    @property
    def share(self) -> float:
        """Share of all replay together, below 1."""
        return self.earlier + sum(self.tasks.values())


class StageSection(Section):
    """One stage of a run: its length, its tasks, and what is replayed."""

    share_of_steps: Annotated[float, Field(gt=0.0)]
    """Length, relative to that of the other stages: the stages share out `training.num_steps`."""

    weights: Annotated[dict[Name, Weight], Field(min_length=1)]
    """Weight of each task that the stage learns, instead of the task's own `weight`. Schedules go over the stage."""

    replay: ReplaySection | None = None
    """What is replayed in this stage, instead of `data.replay`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage as it is in force: one over the whole run where the user gave none, and with its replay or the default.

    A weight of 0 is the same as none.
    """

    key: str
    """Where its weights are given, for messages: data.tasks, or such as data.stages.1."""

    share_of_steps: float
    """Length, relative to the other stages."""

    weights: dict[str, Weight]
    """Weight of each task that it learns."""

    replay: ReplaySection
    """What it replays."""

    replay_key: str
    """Where its replay is given, for messages: data.replay, or such as data.stages.1.replay."""

    def weight_key(self, name: str) -> str:
        """Where the weight of a task is given."""
        return f"{self.key}.{name}.weight" if self.key == "data.tasks" else f"{self.key}.weights.{name}"


def stages_in_force(
    tasks: Mapping[str, Weight], *, stages: Sequence[StageSection], replay: ReplaySection | None
) -> list[Stage]:
    """The stages of a run, at least one.

    Args:
        tasks: `weight` of each task, which counts only where there are no stages.
        stages: `data.stages`.
        replay: `data.replay`; its `earlier` has nothing to replay in the first stage, and is left out there.
    """
    default = replay or ReplaySection(earlier=0.0, tasks={})
    in_first = ReplaySection(earlier=0.0, tasks=default.tasks)
    given = stages or [StageSection(share_of_steps=1.0, weights=dict(tasks))]
    return [
        Stage(
            key=f"data.stages.{number}" if stages else "data.tasks",
            share_of_steps=stage.share_of_steps,
            weights={name: weight for name, weight in stage.weights.items() if weight != 0},
            replay=stage.replay or (default if number else in_first),
            replay_key=f"data.stages.{number}.replay" if stage.replay else "data.replay",
        )
        for number, stage in enumerate(given)
    ]


def course_complaint(
    tasks: Mapping[str, Weight], *, stages: Sequence[StageSection], replay: ReplaySection | None
) -> str | None:
    """What is wrong between the sections, first of all with the first; None where they fit together.

    Args:
        tasks: `weight` of each task.
        stages: `data.stages`.
        replay: `data.replay`.

    Returns:
        The key and what to do about it, in one line.
    """
    return next(_complaints(tasks, stages, replay), None)


def _complaints(
    tasks: Mapping[str, Weight], stages: Sequence[StageSection], replay: ReplaySection | None
) -> Iterator[str]:
    yield from _unknown_names(tasks, stages, replay)
    if replay is not None and replay.earlier > 0 and len(stages) < 2:
        yield f"data.replay.earlier: {replay.earlier:g}, but no stage has an earlier one; add data.stages or remove it"
    if stages and stages[0].replay is not None and stages[0].replay.earlier > 0:
        yield (
            f"data.stages.0.replay.earlier: {stages[0].replay.earlier:g}, but nothing comes before the first stage; "
            "remove it"
        )
    schedules = [name for name, weight in tasks.items() if isinstance(weight, RampSection | StepsSection)]
    if stages and schedules:
        yield (
            f"data.tasks.{schedules[0]}.weight: a schedule, but the weights of data.stages count instead; "
            "move it into a stage"
        )
    in_force = stages_in_force(tasks, stages=stages, replay=replay)
    for number, stage in enumerate(in_force):
        yield from _stage_complaints(stage, earlier=in_force[:number])
    trained = {name for stage in in_force for name in (*stage.weights, *stage.replay.tasks)}
    for name in (name for name in tasks if name not in trained):
        found = "no stage gives it a weight" if stages else "its weight is 0"
        yield f"data.tasks.{name}: never trained on: {found} and no replay names it; change that or remove the task"


def _unknown_names(
    tasks: Mapping[str, Weight], stages: Sequence[StageSection], replay: ReplaySection | None
) -> Iterator[str]:
    named: list[tuple[str, Iterable[str]]] = [("data.replay.tasks", replay.tasks)] if replay else []
    for number, stage in enumerate(stages):
        named.append((f"data.stages.{number}.weights", stage.weights))
        if stage.replay:
            named.append((f"data.stages.{number}.replay.tasks", stage.replay.tasks))
    for key, names in named:
        for name in (name for name in names if name not in tasks):
            yield f"{key}.{name}: no task has this name; the tasks are {', '.join(tasks)}"


def _stage_complaints(stage: Stage, *, earlier: Sequence[Stage]) -> Iterator[str]:
    for name in (name for name in stage.weights if name in stage.replay.tasks):
        yield (
            f"{stage.weight_key(name)}: {stage.replay_key}.tasks sets a share for this task too, so neither would be "
            "what it says; set the weight to 0 or take the task out of the replay"
        )
    for progress in _progresses(stage):
        if not any(_weight_at(weight, progress) for weight in stage.weights.values()):
            yield f"{stage.key}: no task has a weight above 0 at progress {progress:g}; give one such a weight"
    left = {name for other in earlier for name in other.weights} - {*stage.weights, *stage.replay.tasks}
    if earlier and stage.replay.earlier > 0 and not left:
        yield (
            f"{stage.replay_key}.earlier: nothing is left to replay in {stage.key}: each task of the earlier stages "
            "has a weight there, or a share in its replay.tasks; give that stage a replay with `earlier: 0`"
        )


def _progresses(stage: Stage) -> list[float]:
    """Where weights can be 0: ramps at their ends, steps from one of their progresses on."""
    steps = [weight.steps for weight in stage.weights.values() if isinstance(weight, StepsSection)]
    return sorted({0.0, 1.0, *(progress for values in steps for progress in values)})


def _weight_at(weight: Weight, progress: float) -> float:
    match weight:
        case RampSection(ramp=(first, last)):
            return first * (1.0 - progress) + last * progress
        case StepsSection(steps=steps):
            return steps[max(begin for begin in steps if begin <= progress)]
    return weight

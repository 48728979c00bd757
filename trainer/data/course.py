"""How much of each step of a run each task is asked to be: stages, weights that change, replay.

Pure: a function of the configuration and the number of steps, so a resumed run asks for the same. Which example comes
when is the business of mixture.py.

Shapes: K tasks, S steps of the run, N steps of one stage, T positions.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from trainer.config.course_schema import (
    RampSection,
    ReplaySection,
    Stage,
    StageSection,
    StepsSection,
    Weight,
    course_complaint,
    stages_in_force,
)
from trainer.config.errors import ConfigError


class Course:
    """Shares of the tasks over a run.

    The weight of a task is its base times the weight that the stage gives it. The own shares of a step are these
    weights over their sum. Replay is set aside first:

        shares = (1 - earlier - sum of replay.tasks) * own + earlier * past + replay.tasks

    `past` is the mean of the own shares over all steps of the earlier stages, without the tasks that this stage gives
    a weight or a replay of their own, and over its sum. So what is replayed has exactly its share at every step.

    In step s of a stage of n steps, from 0, a ramp is at s / (n - 1): the first step has its first value and the last
    step its last (the last value, where n is 1). Steps are at s / n: the part of the stage that is over.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        base: Sequence[float],
        weights: Mapping[str, Weight],
        stages: Sequence[StageSection],
        replay: ReplaySection | None,
        num_steps: int,
    ) -> None:
        """Cut the run into its stages.

        Args:
            names: the tasks, in the order of the shares (K).
            base: factor of each task, on any scale: 1 for explicit weights, its capped and tempered size for
                proportional ones (K).
            weights: `weight` of each task.
            stages: `data.stages`, which `course_complaint` has nothing against.
            replay: `data.replay`.
            num_steps: steps of the run, S.

        Raises:
            ConfigError: a stage is shorter than one step.
        """
        assert course_complaint(weights, stages=stages, replay=replay) is None
        assert len(base) == len(names), (base, names)
        self._names = list(names)
        self._base_K = np.asarray(base, dtype=np.float64)
        self._stages = stages_in_force(weights, stages=stages, replay=replay)
        self._bounds = _stage_bounds(self._stages, num_steps=num_steps)

    @property
    def stage_starts(self) -> list[int]:
        """First step of each stage."""
        return self._bounds[:-1]

    def stage_of(self, step: int) -> int:
        """Number of the stage that a step belongs to, from 0."""
        assert 0 <= step < self._bounds[-1], step
        return bisect_right(self._bounds, step) - 1

    def shares_at(self, step: int) -> np.ndarray:
        """Share of each task in one step (K); they sum to 1. Raises as `shares_SK` does."""
        assert 0 <= step < self._bounds[-1], step
        return self.shares_SK[step]

    @property
    def is_steady(self) -> bool:
        """Whether all steps have the same shares. Raises as `shares_SK` does."""
        return bool(np.all(self.shares_SK == self.shares_SK[0]))

    @cached_property
    def shares_SK(self) -> np.ndarray:  # noqa: N802  # ends in its shape
        """Share of each task in each step (float64, read-only); every row sums to 1.

        Raises:
            ConfigError: in some step no task has a weight, or there is nothing to replay: schedules can be 0 in all
                of the steps that a stage happens to have.
        """
        shares_SK = np.empty((self._bounds[-1], len(self._names)))
        past_sum_K = np.zeros(len(self._names))
        for stage, (start, end) in zip(self._stages, pairwise(self._bounds), strict=True):
            own_NK = self._own_shares(stage, num_steps=end - start)
            shares_SK[start:end] = (1.0 - stage.replay.share) * own_NK + self._replayed(stage, past_sum_K)
            past_sum_K += own_NK.sum(axis=0)
        shares_SK.setflags(write=False)
        return shares_SK

    def _own_shares(self, stage: Stage, *, num_steps: int) -> np.ndarray:
        """Shares of the tasks that a stage learns, in each of its steps (N, K), before anything is set aside."""
        weights_NK = np.zeros((num_steps, len(self._names)))
        for task, name in enumerate(self._names):
            if name in stage.weights:
                weights_NK[:, task] = self._base_K[task] * _weight_over(stage.weights[name], num_steps=num_steps)
        totals_N = weights_NK.sum(axis=1)
        if not np.all(totals_N > 0):
            raise ConfigError(
                f"{stage.key}: no task has a weight above 0 in step {int(np.argmin(totals_N > 0))} of "
                f"{num_steps} (from 0). Give one such a weight there."
            )
        return weights_NK / totals_N[:, None]

    def _replayed(self, stage: Stage, past_sum_K: np.ndarray) -> np.ndarray:
        """The shares that a stage sets aside (K), after earlier stages whose own shares have this sum."""
        asked_K = np.array([stage.replay.tasks.get(name, 0.0) for name in self._names])
        if stage.replay.earlier == 0:
            return asked_K
        is_left_K = [name not in stage.weights and name not in stage.replay.tasks for name in self._names]
        past_K = np.where(is_left_K, past_sum_K, 0.0)
        if not np.any(past_K):
            raise ConfigError(
                f"{stage.replay_key}.earlier: nothing is left to replay in {stage.key}: the other tasks of the earlier "
                "stages had a weight of 0 in all their steps. Give that stage a replay with `earlier: 0`."
            )
        return asked_K + stage.replay.earlier * (past_K / past_K.sum())


def position_shares(shares_SK: np.ndarray, *, step_starts: np.ndarray) -> np.ndarray:
    """Share of each task at each position (T, K).

    Args:
        shares_SK: share of each task in each step.
        step_starts: step s holds the positions step_starts[s] to step_starts[s + 1], which is T for the last (S + 1).
    """
    assert len(step_starts) == len(shares_SK) + 1, (len(step_starts), len(shares_SK))
    assert step_starts[0] == 0, step_starts[0]
    return np.repeat(shares_SK, np.diff(step_starts), axis=0)


def _stage_bounds(stages: Sequence[Stage], *, num_steps: int) -> list[int]:
    """First step of each stage, and the end of the last: each boundary is rounded to the nearest step."""
    ends = np.cumsum([stage.share_of_steps for stage in stages])
    bounds = [0, *np.floor(ends / ends[-1] * num_steps + 0.5).astype(int).tolist()]
    for stage, (start, end) in zip(stages, pairwise(bounds), strict=True):
        if start == end:
            raise ConfigError(
                f"{stage.key}.share_of_steps: {stage.share_of_steps:g} of {ends[-1]:g}, which is no whole step of "
                f"training.num_steps: {num_steps}. Raise one of them."
            )
    return bounds


def _weight_over(weight: Weight, *, num_steps: int) -> np.ndarray:
    """Weight of a task in each step of a stage (N)."""
    match weight:
        case RampSection(ramp=(first, last)):
            return np.linspace(first, last, num_steps) if num_steps > 1 else np.array([last])
        case StepsSection(steps=steps):
            begins, values = zip(*sorted(steps.items()), strict=True)
            progress_N = np.arange(num_steps) / num_steps
            return np.array(values)[np.searchsorted(begins, progress_N, side="right") - 1]
    return np.full(num_steps, weight)

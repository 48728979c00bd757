"""A sequence of stages in a report: the matrix of scores, and the measures that are read off it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

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
    worst_delta,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Scores of all tasks after all stages: shares in [0, 1], higher is better."""

    stages: tuple[str, ...]
    """`base`, then the stages."""
    steps: tuple[int, ...]
    """Optimizer steps after which each row was measured."""
    tasks: tuple[str, ...]
    learnt_in: tuple[int, ...]
    """For each task the first stage that trains on it, from 1; 0 for a base ability."""
    scores_RT: tuple[tuple[float, ...], ...]
    """One row a stage, one score a task."""
    average_accuracy: float | None
    """ACC: mean over the stages of their tasks' score at the end."""
    average_over_time: float | None
    """Mean of ACC after each stage."""
    backward_transfer: float | None
    """BWT: mean over earlier stages of score now - score when learnt; below 0 is forgetting."""
    forward_transfer: float | None
    """FWT: mean over later stages of score just before they are learnt - score of the base."""
    forgetting: float | None
    """F: mean over earlier stages of best score so far - score now."""
    forgetting_by_task: Mapping[str, float]
    """Best score so far - score now, of each task known before the last stage."""
    ability_delta: float | None
    """Mean change of the base abilities; None without one. Never without `worst_ability`: gains hide falls."""
    worst_ability: str | None
    """The base ability that fell most."""
    worst_ability_delta: float | None
    """Its change."""
    intransigence: tuple[float, ...] | None
    """I_k: score of a reference run trained on everything at once - score of stage k when learnt; None without one."""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """From its JSON object; raises KeyError or TypeError where it is none."""
        tuples = {key: tuple(raw[key]) for key in ("stages", "steps", "tasks", "learnt_in")}
        rows = tuple(tuple(row) for row in raw["scores_RT"])
        reference = None if raw["intransigence"] is None else tuple(raw["intransigence"])
        return cls(**{**raw, **tuples, "scores_RT": rows, "intransigence": reference})


def read_off(matrix: ContinualMatrix, *, steps: Sequence[int], reference: Sequence[float] | None = None) -> Stages:
    """All measures of a matrix.

    Args:
        steps: optimizer steps of each row.
        reference: score on each stage's tasks of a model trained on everything at once.
    """
    base, last = (
        {
            name: row[task]
            for task, (name, learnt) in enumerate(zip(matrix.tasks, matrix.learnt_in, strict=True))
            if learnt == 0
        }
        for row in (matrix.scores_RT[0], matrix.scores_RT[-1])
    )
    worst = worst_delta(base, last) if base else (None, None)
    return Stages(
        stages=matrix.stages,
        steps=tuple(steps),
        tasks=matrix.tasks,
        learnt_in=matrix.learnt_in,
        scores_RT=matrix.scores_RT,
        average_accuracy=average_accuracy(matrix),
        average_over_time=average_over_time(matrix),
        backward_transfer=backward_transfer(matrix),
        forward_transfer=forward_transfer(matrix),
        forgetting=forgetting(matrix),
        forgetting_by_task=forgetting_by_task(matrix),
        ability_delta=ability_delta(base, last) if base else None,
        worst_ability=worst[0],
        worst_ability_delta=worst[1],
        intransigence=None if reference is None else intransigence(matrix, reference=reference),
    )

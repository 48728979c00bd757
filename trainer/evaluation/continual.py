"""Measures of a sequence of training stages: what the last model still can, of all that was learnt on the way.

One matrix in: the score of every task after every stage, and of the base model in row 0. Pure functions
of numbers; knows nothing of models, files or how a score was made.

Sources: Lopez-Paz & Ranzato 2017 (GEM, arXiv 1706.08840), Chaudhry et al. 2018 (RWalk, arXiv 1801.10112),
Wang et al. 2023 (TRACE, arXiv 2310.06762). In formulas R[t, i] is the score of stage i's tasks after stage t.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from trainer.config.errors import InputError

Rows: TypeAlias = tuple[tuple[float, ...], ...]

BASE = "base"
"""Name of row 0: the model before training."""

# R rows, one a model: the base, then one a stage; T tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinualMatrix:
    """Scores of tasks along a sequence of stages; higher is better."""

    stages: tuple[str, ...]
    """Names of the rows: `base`, then the stages in the order of training."""
    tasks: tuple[str, ...]
    """Names of the columns."""
    learnt_in: tuple[int, ...]
    """For each task the stage, from 1, that first trains on it; 0 for an ability of the base, never trained on."""
    scores_RT: Rows
    """One row a model, one score a task, all in one unit."""

    def __post_init__(self) -> None:
        """Refuse what is no matrix of stages and tasks (InputError)."""
        for what, names in (("stages", self.stages), ("tasks", self.tasks)):
            _refuse(len(set(names)) < len(names), f"{what} {', '.join(names)}: each needs a name of its own")
        _refuse(self.stages[:1] != (BASE,), f"stages {', '.join(self.stages)}: the first must be {BASE!r}")
        shape = (len(self.scores_RT), sorted({len(row) for row in self.scores_RT}))
        wanted = (len(self.stages), [len(self.tasks)])
        _refuse(shape != wanted, f"{shape[0]} rows of {shape[1]} scores, wanted {wanted[0]} rows of {wanted[1]}")
        finite = all(math.isfinite(score) for row in self.scores_RT for score in row)
        _refuse(not finite, "a score is not finite; did the model diverge?")
        _refuse(
            len(self.learnt_in) != len(self.tasks), f"learnt_in has {len(self.learnt_in)} entries, one a task needed"
        )
        strange = sorted(set(self.learnt_in) - set(range(len(self.stages))))
        _refuse(bool(strange), f"learnt_in names stage(s) {strange}, there are 0 to {len(self.stages) - 1}")
        empty = [name for number, name in enumerate(self.stages) if number > 0 and number not in self.learnt_in]
        _refuse(bool(empty), f"no task is first learnt in stage(s) {', '.join(empty)}: measure one of each stage's own")

    @property
    def num_stages(self) -> int:
        """T of the formulas: stages of training, without the base."""
        return len(self.stages) - 1


def _refuse(is_wrong: bool, message: str) -> None:
    if is_wrong:
        raise InputError(f"continual matrix: {message}.")


def stage_scores(matrix: ContinualMatrix) -> Rows:
    """R[t, i]: row t = 0..T, column i - 1 for stage i = 1..T, the mean score of the tasks first learnt in it."""
    stages = range(1, matrix.num_stages + 1)
    columns = [[task for task, learnt in enumerate(matrix.learnt_in) if learnt == stage] for stage in stages]
    return tuple(tuple(fmean(row[task] for task in column) for column in columns) for row in matrix.scores_RT)


def average_accuracy(matrix: ContinualMatrix, *, after_stage: int | None = None) -> float | None:
    """ACC: mean over i <= t of R[t, i], by default of the last stage t = T (Lopez-Paz & Ranzato 2017).

    At an earlier stage it is of the stages so far, TRACE's overall performance (OP). None without a stage.

    Raises:
        InputError: a stage that is not one of 1..T.
    """
    if matrix.num_stages == 0:
        return None
    stage = matrix.num_stages if after_stage is None else after_stage
    _refuse(not 1 <= stage <= matrix.num_stages, f"stage {stage} is none of 1 to {matrix.num_stages}")
    return fmean(stage_scores(matrix)[stage][:stage])


def average_over_time(matrix: ContinualMatrix) -> float | None:
    """Mean over t = 1..T of ACC after stage t (average incremental accuracy, Rebuffi et al. 2017). None if T < 1."""
    rows = stage_scores(matrix)
    return fmean(fmean(rows[t][:t]) for t in range(1, len(rows))) if matrix.num_stages else None


def backward_transfer(matrix: ContinualMatrix) -> float | None:
    """BWT: mean over i < T of R[T, i] - R[i, i]; below 0 is forgetting (Lopez-Paz & Ranzato 2017).

    Minus BWT is the mean of first minus last score, which some libraries print as forgetting. None if T < 2.
    """
    if matrix.num_stages < 2:
        return None
    rows = stage_scores(matrix)
    return fmean(rows[-1][i - 1] - rows[i][i - 1] for i in range(1, matrix.num_stages))


def forward_transfer(matrix: ContinualMatrix) -> float | None:
    """FWT: mean over i = 2..T of R[i - 1, i] - b_i (Lopez-Paz & Ranzato 2017), with b_i = R[0, i].

    The paper's b_i is the score of random weights; here it is that of the base model before training, which is
    where fine-tuning begins. None if T < 2.
    """
    if matrix.num_stages < 2:
        return None
    rows = stage_scores(matrix)
    return fmean(rows[i - 1][i - 1] - rows[0][i - 1] for i in range(2, matrix.num_stages + 1))


def forgetting(matrix: ContinualMatrix) -> float | None:
    """F: mean over j < T of max over l = 1..T-1 of R[l, j] - R[T, j], best ever minus now (Chaudhry et al. 2018).

    At least -BWT, as the best is at least the first. The best is of each stage's mean over its tasks. None if T < 2.
    """
    if matrix.num_stages < 2:
        return None
    rows = stage_scores(matrix)
    return fmean(max(row[j] for row in rows[1:-1]) - rows[-1][j] for j in range(matrix.num_stages - 1))


def forgetting_by_task(matrix: ContinualMatrix) -> dict[str, float]:
    """Best score so far minus the last one, for each task that was known before the last stage.

    A task learnt in stages 1..T-1: the best of rows 1..T-1, as in `forgetting`. An ability of the base, which the
    paper does not treat: the best of rows 0..T-1. Tasks of the last stage are left out; empty without a stage.
    """
    last = matrix.num_stages
    return {
        name: max(row[task] for row in matrix.scores_RT[min(learnt, 1) : last]) - matrix.scores_RT[last][task]
        for task, (name, learnt) in enumerate(zip(matrix.tasks, matrix.learnt_in, strict=True))
        if learnt < last
    }


def intransigence(matrix: ContinualMatrix, *, reference: Sequence[float]) -> tuple[float, ...]:
    """I_k = R*_k - R[k, k] of each stage k = 1..T: what learning in sequence costs a new task (Chaudhry et al. 2018).

    `reference` is R*_k: the score on stage k's tasks of a model trained jointly on stages 1..k.

    Raises:
        InputError: not one finite reference score a stage.
    """
    fits = len(reference) == matrix.num_stages and all(map(math.isfinite, reference))
    _refuse(
        not fits, f"reference scores {list(reference)}: one finite score for each of {matrix.num_stages} stages needed"
    )
    rows = stage_scores(matrix)
    return tuple(best - rows[k][k - 1] for k, best in enumerate(reference, start=1))


def ability_delta(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Mean over a set of abilities of score after - score before (TRACE, section 3: Delta R^G, R^I, R^S).

    Falls and gains cancel in it: never show it without `worst_delta`.

    Raises:
        InputError: no ability, or not the same ones before and after.
    """
    return fmean(_deltas(before, after=after).values())


def worst_delta(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[str, float]:
    """Name and score after - score before of the ability that fell most; the first by name of equals.

    Raises:
        InputError: no ability, or not the same ones before and after.
    """
    deltas = _deltas(before, after=after)
    name = min(sorted(deltas), key=deltas.__getitem__)
    return name, deltas[name]


def _deltas(before: Mapping[str, float], *, after: Mapping[str, float]) -> dict[str, float]:
    """Score after - score before by name."""
    unmatched = sorted(before.keys() ^ after.keys())
    if unmatched or not before:
        found = f"{', '.join(unmatched)} not on both sides" if unmatched else "no ability"
        raise InputError(f"abilities before and after: {found}. Measure the same ones, at least one, on both models.")
    return {name: after[name] - before[name] for name in before}


def stability_gap(history: Sequence[float], *, at_stage_end: float) -> float | None:
    """Lowest score of a task during a stage minus its score at the stage's end; None without a history.

    Below 0: the stage forgot and recovered, which rows of the matrix cannot show (De Lange et al. 2023,
    arXiv 2205.13452, where the minimum is averaged as min-ACC).
    """
    return min(history) - at_stage_end if history else None

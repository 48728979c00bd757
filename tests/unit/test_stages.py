"""A sequence of stages in a report: every measure of it comes from the matrix, and it is read back equal."""

import json
from dataclasses import asdict, replace

import pytest

from trainer.config.errors import InputError
from trainer.evaluation.continual import ContinualMatrix
from trainer.evaluation.stages import Stages, read_off

ROUNDING = 1e-12
MATRIX = ContinualMatrix(
    stages=("base", "first", "second", "third"),
    tasks=("a", "knowledge", "b", "c", "arithmetic"),
    learnt_in=(1, 0, 2, 3, 0),
    scores_RT=(
        (0.10, 0.7, 0.20, 0.30, 0.5),
        (0.90, 0.6, 0.25, 0.35, 0.5),
        (0.95, 0.5, 0.80, 0.50, 0.2),
        (0.60, 0.4, 0.70, 0.85, 0.6),
    ),
)
STEPS = (0, 10, 25, 40)


def test_each_measure_is_the_one_of_its_name() -> None:
    # Worked by hand.  ACC (0.60 + 0.70 + 0.85) / 3; over time the mean of 0.9, 0.875 and that.
    # BWT ((0.60 - 0.90) + (0.70 - 0.80)) / 2.  FWT ((0.25 - 0.20) + (0.50 - 0.30)) / 2.
    # Forgetting of a: 0.95 - 0.60; of b: 0.80 - 0.70; over stages (0.35 + 0.1) / 2.
    # Base abilities: 0.4 - 0.7 and 0.6 - 0.5, mean -0.1.
    stages = read_off(MATRIX, steps=STEPS)
    assert stages.average_accuracy == pytest.approx(2.15 / 3, abs=ROUNDING)
    assert stages.average_over_time == pytest.approx((0.9 + 0.875 + 2.15 / 3) / 3, abs=ROUNDING)
    assert stages.backward_transfer == pytest.approx(-0.2, abs=ROUNDING)
    assert stages.forward_transfer == pytest.approx(0.125, abs=ROUNDING)
    assert stages.forgetting == pytest.approx(0.225, abs=ROUNDING)
    assert stages.forgetting_by_task["a"] == pytest.approx(0.35, abs=ROUNDING)
    assert stages.forgetting_by_task["b"] == pytest.approx(0.1, abs=ROUNDING)
    assert stages.forgetting_by_task["knowledge"] == pytest.approx(0.3, abs=ROUNDING)
    assert "c" not in stages.forgetting_by_task
    assert stages.ability_delta == pytest.approx(-0.1, abs=ROUNDING)
    assert (stages.worst_ability, stages.worst_ability_delta) == ("knowledge", pytest.approx(-0.3, abs=ROUNDING))
    assert stages.intransigence is None
    assert (stages.stages, stages.steps, stages.tasks) == (MATRIX.stages, STEPS, MATRIX.tasks)
    assert (stages.learnt_in, stages.scores_RT) == (MATRIX.learnt_in, MATRIX.scores_RT)


def test_a_reference_run_tells_what_could_have_been_learnt() -> None:
    # 0.95 - 0.90, 0.75 - 0.80, 0.90 - 0.85
    stages = read_off(MATRIX, steps=STEPS, reference=(0.95, 0.75, 0.90))
    assert stages.intransigence == pytest.approx((0.05, -0.05, 0.05), abs=ROUNDING)
    with pytest.raises(InputError):
        read_off(MATRIX, steps=STEPS, reference=(0.95,))


def test_without_base_abilities_nothing_is_said_of_them() -> None:
    scores = tuple((row[0], row[2], row[3]) for row in MATRIX.scores_RT)
    bare = replace(MATRIX, tasks=("a", "b", "c"), learnt_in=(1, 2, 3), scores_RT=scores)
    stages = read_off(bare, steps=STEPS)
    assert (stages.ability_delta, stages.worst_ability, stages.worst_ability_delta) == (None, None, None)


@pytest.mark.parametrize("reference", [None, (0.95, 0.75, 0.90)])
def test_stages_come_back_from_json_equal(reference: tuple[float, ...] | None) -> None:
    stages = read_off(MATRIX, steps=STEPS, reference=reference)
    assert Stages.from_json(json.loads(json.dumps(asdict(stages)))) == stages


@pytest.mark.parametrize("key", ["steps", "scores_RT", "intransigence", "forgetting", "worst_ability"])
def test_a_missing_or_unknown_key_is_no_stages(key: str) -> None:
    raw = asdict(read_off(MATRIX, steps=STEPS))
    with pytest.raises((KeyError, TypeError)):
        Stages.from_json({name: value for name, value in raw.items() if name != key})
    with pytest.raises(TypeError):
        Stages.from_json({**raw, "extra": 1})

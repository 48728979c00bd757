"""The same mathematics however a run is spread, padded, recomputed, measured: real processes, real gloo, real ZeRO."""

from typing import Any

import pytest

from tests.demo_assets import needs_demo_packages
from tests.equivalence.classes import CLASSES, FP16_CLASS, Class
from tests.equivalence.conftest import Note, Row, computes_in_fp16
from tests.harness import largest_deviation

pytestmark = needs_demo_packages
Fleet = dict[str, dict[str, Any]]


def deviation_of(fleet: Fleet, group: Class, name: str) -> float:
    """Largest relative deviation of a case from the reference of its class."""
    for one in (group.reference, name):
        assert "steps" in fleet[one], f"{one}: {fleet[one]['error']}"
    reference, found = fleet[group.reference]["steps"], fleet[name]["steps"]
    if group.first_loss_only:
        return abs(found[0][0] - reference[0][0]) / reference[0][0]
    return largest_deviation(reference, found)


def check(fleet: Fleet, name: str, group: Class, note: Note) -> None:
    """Every member agrees with the reference, every negative does not."""
    deviations = {member: deviation_of(fleet, group, member) for member in group.members}
    caught = {negative: deviation_of(fleet, group, negative) for negative in group.negatives}
    worst = max(deviations, key=deviations.__getitem__)
    tolerance = 0.0 if group.exact else group.tolerance
    note(Row(name, len(deviations), deviations[worst], worst, tolerance, caught))
    assert deviations[worst] <= tolerance, f"{worst} deviates by {deviations[worst]:.1e}"
    assert {fault: far for fault, far in caught.items() if far <= group.tolerance} == {}, "a planted fault passed"


@pytest.mark.parametrize("name", CLASSES)
def test_runs_of_a_class_agree_and_planted_faults_do_not(fleet: Fleet, note: Note, name: str) -> None:
    check(fleet, name, CLASSES[name], note)


@pytest.mark.skipif(not computes_in_fp16(), reason="this processor does not compute in fp16")
def test_an_overflowing_fp16_step_is_taken_again_with_a_smaller_scale(fleet: Fleet, note: Note) -> None:
    check(fleet, "fp16, whatever the loss scale", FP16_CLASS, note)
    # From 2^40 down to a scale that fits: at least 2^40 / 2^16, so the step was taken again many times.
    again = {name: fleet[name]["overflows"] for name in FP16_CLASS.members if "overflows" in name}
    assert min(again.values()) > 10, again
    assert fleet["fp16"]["overflows"] == 0


def test_an_8_bit_base_learns(fleet: Fleet) -> None:
    losses = [loss for loss, _ in fleet["int8"]["steps"]]
    assert losses[-1] < losses[0]
    assert losses[0] != fleet["lora"]["steps"][0][0]  # or nothing was quantised

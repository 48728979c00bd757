"""Pulses keep to their share of the time, by a clock that the test turns."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.evaluation_schema import PulseSection
from trainer.pulse import PulseBudget

ROUNDING = 1e-9


@dataclass
class Run:
    """Steps and pulses on a clock of its own, in the order in which a run asks and tells."""

    section: PulseSection | None
    expected_seconds: float = 1.0
    now: float = 100.0
    pulses: list[tuple[int, float]] = field(default_factory=list)
    """(step, share of the time spent on pulses once it was over)"""

    def __post_init__(self) -> None:
        self.budget = PulseBudget(self.section, expected_seconds=self.expected_seconds, clock=lambda: self.now)
        self.step = 0

    def steps(self, count: int, *, step_seconds: float, pulse_seconds: float) -> list[int]:
        """Take so many steps; the numbers of those after which there was a pulse."""
        first = len(self.pulses)
        for _ in range(count):
            self.now += step_seconds
            self.step += 1
            due = self.budget.due()
            self.budget.step()
            if due:
                self.now += pulse_seconds
                self.budget.took(pulse_seconds)
                self.pulses.append((self.step, self.budget.share_spent))
        return [step for step, _ in self.pulses[first:]]


def section(share: float, *, min_steps_between: int = 1) -> PulseSection:
    return PulseSection(max_share_of_time=share, min_steps_between=min_steps_between)


def test_a_pulse_comes_as_soon_as_it_fits_and_no_sooner() -> None:
    # A pulse of 1 s at a tenth of the time: after 9 s of steps it is 1 of 10 s; the next one after 18 s of steps.
    assert Run(section(0.1)).steps(40, step_seconds=1.0, pulse_seconds=1.0) == [9, 18, 27, 36]


def test_pulses_that_grow_slower_come_less_often_and_faster_ones_more_often() -> None:
    run = Run(section(0.1))
    assert run.steps(18, step_seconds=1.0, pulse_seconds=1.0) == [9, 18]
    # The third is expected to take 1 s and takes 4: so will the fourth, which waits for 36 s of steps.
    assert run.steps(150, step_seconds=1.0, pulse_seconds=4.0) == [27, 63, 99, 135]
    # The next is expected to take 4 s and takes 0.5: the one after it waits for 4.5 s.
    assert run.steps(17, step_seconds=1.0, pulse_seconds=0.5) == [171, 176, 181]


def test_a_first_pulse_that_takes_longer_than_expected_is_waited_for_afterwards() -> None:
    # Expected 0.1 s: 0.9 s of steps are enough.  It took 5: the next one waits for 45 s.
    assert Run(section(0.1), expected_seconds=0.1).steps(95, step_seconds=1.0, pulse_seconds=5.0) == [1, 46, 91]


def test_nobody_asked_for_pulses() -> None:
    run = Run(None, expected_seconds=0.0)
    assert run.steps(1000, step_seconds=1.0, pulse_seconds=0.001) == []
    assert run.budget.share_spent == 0.0


@pytest.mark.parametrize(("least", "wanted"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4]), (7, [])])
def test_so_many_steps_lie_between_pulses_however_much_time_there_is(least: int, wanted: list[int]) -> None:
    run = Run(section(1.0, min_steps_between=least), expected_seconds=0.0)
    assert run.steps(6, step_seconds=1.0, pulse_seconds=0.001) == wanted


def test_asking_changes_nothing() -> None:
    run = Run(section(0.1))
    run.steps(8, step_seconds=1.0, pulse_seconds=1.0)
    assert not any(run.budget.due() for _ in range(100))
    run.now += 1.0
    assert all(run.budget.due() for _ in range(100))


def test_before_any_time_has_passed_nothing_is_spent() -> None:
    assert Run(section(0.5)).budget.share_spent == 0.0


seconds = st.floats(0.01, 20.0)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.001, 1.0),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(1, 30), seconds, seconds), min_size=1, max_size=8),
    seconds,
)
def test_the_share_is_never_exceeded_by_more_than_one_pulse(
    share: float, least: int, stretches: list[tuple[int, float, float]], expected: float
) -> None:
    # Speeds of steps and pulses change at will. All but the last pulse have been waited for: of that one, no more than
    # what is not its share is too much. Where every pulse takes what is expected, nothing is.
    run = Run(section(share, min_steps_between=least), expected_seconds=expected)
    is_steady = True
    for count, step_seconds, pulse_seconds in stretches:
        for _ in range(count):
            begun = run.now
            if run.steps(1, step_seconds=step_seconds, pulse_seconds=pulse_seconds):
                elapsed = run.now - 100.0
                excess = run.budget.share_spent * elapsed - share * elapsed
                assert excess <= pulse_seconds * (1 - share) + ROUNDING
                is_steady &= pulse_seconds <= expected
                assert excess <= ROUNDING or not is_steady
            else:
                assert run.now == begun + step_seconds
    numbers = [0, *(step for step, _ in run.pulses)]
    assert all(later - earlier >= least for earlier, later in pairwise(numbers))

"""When a small measurement fits into the run: it may take a share of the wall time, by what the last one took."""

import time
from collections.abc import Callable

from trainer.config.evaluation_schema import PulseSection


class PulseBudget:
    """The main rank's account of time spent on pulses."""

    def __init__(
        self, section: PulseSection | None, *, expected_seconds: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Training begins now.

        Args:
            section: None for no pulses at all.
            expected_seconds: that the first pulse will take.
            clock: seconds, for tests.
        """
        self._section, self._clock = section, clock
        self._begun = self._last = clock()
        self._expected, self._spent = expected_seconds, 0.0
        self._steps_since = 0
        self.num_pulses = 0

    def step(self) -> None:
        """One optimizer step was taken."""
        self._steps_since += 1

    def due(self) -> bool:
        """Whether the time since the last pulse is long enough for one that takes as long as the last one did."""
        section = self._section
        if section is None or self._steps_since + 1 < section.min_steps_between:
            return False
        waited = self._clock() - self._last
        return self._expected <= section.max_share_of_time * (waited + self._expected)

    def took(self, seconds: float) -> None:
        """A pulse is over; the next one is expected to take as long."""
        self._spent += seconds
        self._expected = seconds
        self.num_pulses += 1
        self._steps_since = 0
        self._last = self._clock()

    @property
    def share_spent(self) -> float:
        """Part of the time since training began that went into pulses."""
        elapsed = self._clock() - self._begun
        return self._spent / elapsed if elapsed > 0 else 0.0

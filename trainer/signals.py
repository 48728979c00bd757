"""Requests to stop: a signal sets a flag, and all ranks agree on it at the end of a step."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Set by a signal on this rank; the loop asks all ranks before it acts."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Install the handlers: one request is enough, further signals change nothing."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

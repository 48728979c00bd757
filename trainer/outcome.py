"""How a rank ended: one small JSON file a rank, which the launcher turns into one clear message.

torchrun reports that some rank failed; this says which one, when, and why.
"""

import time
import traceback
from typing import Literal

from trainer.config.errors import EXIT_CRASH, EXIT_DONE, EXIT_INPUT, EXIT_STOPPED, InputError, NonFiniteError
from trainer.config.run_folder import RunFolder, write_json

Kind = Literal["done", "stopped", "input", "non-finite", "crash"]


def write_outcome(folder: RunFolder, *, rank: int, host: str, error: BaseException | None, stopped: bool) -> int:
    """Record the end of this rank.

    Returns:
        The exit code that belongs to it.
    """
    kind, code = _classify(error, stopped=stopped)
    write_json(
        folder.outcome(rank),
        {
            "rank": rank,
            "host": host,
            "time_seconds": time.time(),
            "kind": kind,
            "exit_code": code,
            "message": "" if error is None else str(error),
            "traceback": "".join(traceback.format_exception(error)) if kind == "crash" and error else "",
        },
    )
    return code


def _classify(error: BaseException | None, *, stopped: bool) -> tuple[Kind, int]:
    match error:
        case None:
            return ("stopped", EXIT_STOPPED) if stopped else ("done", EXIT_DONE)
        case InputError():
            return "input", EXIT_INPUT
        case NonFiniteError():
            return "non-finite", EXIT_CRASH
    return "crash", EXIT_CRASH

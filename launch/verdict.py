"""From the ranks' outcomes to one message: what happened, on which rank, and what to do next. Pure but for reading."""

import json
from dataclasses import dataclass
from typing import Any

from trainer.config.errors import EXIT_CRASH, EXIT_DONE, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_STOPPED
from trainer.config.run_folder import RunFolder

LOST_PEER_WORDS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Socket")
"""What gloo and NCCL say when the rank at the other end is gone."""

LAST_LINES = 12
"""Lines of the launcher's log that are shown where no rank could say anything."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run ended."""

    exit_code: int
    message: str


def judge(folder: RunFolder, *, world_size: int, returncode: int, interrupted: bool) -> Verdict:
    """Weigh the outcome files; the first failing rank speaks, because the others fail in its wake."""
    outcomes = _read_outcomes(folder, world_size)
    failed = sorted((o for o in outcomes.values() if o["exit_code"] not in (0, 75)), key=lambda o: o["time_seconds"])
    silent = [rank for rank in range(world_size) if rank not in outcomes]
    if failed and not (silent and _lost_a_peer(failed[0])):
        return _of_failure(failed[0], folder)
    if not silent and all(outcome["kind"] == "done" for outcome in outcomes.values()):
        return Verdict(EXIT_DONE, "")
    if not silent:
        return Verdict(EXIT_STOPPED, f"Stopped with a complete checkpoint. {_how_to_go_on(folder)}")
    if interrupted:
        code = EXIT_STOPPED if folder.complete_checkpoints() else EXIT_INTERRUPTED
        return Verdict(code, f"Stopped. {_how_to_go_on(folder)}")
    wake = f" Rank {failed[0]['rank']} on {failed[0]['host']} lost its connection to it." if failed else ""
    return Verdict(
        EXIT_CRASH,
        f"rank(s) {', '.join(map(str, silent))} ended without a word (launcher exit {returncode}): killed, perhaps by "
        f"the kernel for memory, or not able to start.{wake} {_how_to_go_on(folder)}\n"
        f"Last lines of {folder.launcher_log}:\n{_last_lines(folder)}",
    )


def _lost_a_peer(outcome: dict[str, Any]) -> bool:
    """True for a crash that says no more than that another rank went away."""
    return outcome["kind"] == "crash" and any(words in outcome["message"] for words in LOST_PEER_WORDS)


def _of_failure(outcome: dict[str, Any], folder: RunFolder) -> Verdict:
    if outcome["exit_code"] == EXIT_INPUT:
        return Verdict(EXIT_INPUT, outcome["message"])
    who = f"rank {outcome['rank']} on {outcome['host']}"
    if outcome["kind"] == "non-finite":
        advice = "Lower training.learning_rate or look at the data of this step."
        return Verdict(EXIT_CRASH, f"{who}: {outcome['message']}. {advice} {_how_to_go_on(folder)}")
    return Verdict(
        EXIT_CRASH, f"{who} failed first:\n{outcome['traceback']}Logs: {folder.logs}. {_how_to_go_on(folder)}"
    )


def _last_lines(folder: RunFolder) -> str:
    try:
        lines = folder.launcher_log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"  ({error.strerror})"
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:]) or "  (empty)"


def _how_to_go_on(folder: RunFolder) -> str:
    steps = folder.complete_checkpoints()
    if not steps:
        return "There is no checkpoint yet: start the run again."
    return f"Go on from step {steps[-1]} with: retain train --resume {folder.path}"


def _read_outcomes(folder: RunFolder, world_size: int) -> dict[int, dict[str, Any]]:
    outcomes = {}
    for rank in range(world_size):
        try:
            outcomes[rank] = json.loads(folder.outcome(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return outcomes

"""Frame of the small one-process programs (export, generate): library noise to a log, one line for a wrong input."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from trainer.config.errors import EXIT_CRASH, EXIT_DONE, EXIT_INPUT, OWN_LINE, InputError
from trainer.config.run_folder import RunFolder
from trainer.console import Screen, divert_library_output


def run_program(run_path: Path, name: str, body: Callable[[Screen], str], *, needs_plan: bool = True) -> int:
    """Run `body`, print the text that it returns, and turn its errors into exit codes. The screen is for progress."""
    folder = RunFolder(run_path)
    if needs_plan and not folder.plan.is_file():
        print(f"{OWN_LINE}{run_path}: not a run folder (no plan.json in it).", file=sys.stderr)
        return EXIT_INPUT
    log = folder.logs / f"{name}.log"
    stdout, stderr = divert_library_output(log)
    try:
        text = body(Screen(stdout, speaks=True))
        if text:
            print(text, file=stdout, flush=True)
    except InputError as error:
        print(*(f"{OWN_LINE}{line}" for line in str(error).splitlines()), sep="\n", file=stderr, flush=True)
        return EXIT_INPUT
    except Exception as error:  # recorded in the log, told in one line
        traceback.print_exc()
        print(f"{OWN_LINE}{name} failed: {type(error).__name__}: {error}. See {log}.", file=stderr, flush=True)
        return EXIT_CRASH
    return EXIT_DONE


def weights_folder(folder: RunFolder, step: int | None) -> Path:
    """Weights of one checkpoint, the newest by default.

    Raises:
        InputError: there is none, or not at that step.
    """
    steps = folder.complete_checkpoints()
    if not steps:
        raise InputError(f"{folder.path}: no complete checkpoint yet. Train first: retain train --resume {folder.path}")
    if step is not None and step not in steps:
        raise InputError(f"{folder.path}: no checkpoint at step {step}. Complete ones: {', '.join(map(str, steps))}.")
    return folder.checkpoint(steps[-1] if step is None else step) / "weights"

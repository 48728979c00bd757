"""Start the ranks of a plan on this machine, stop them in order, and say in words how they ended."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

from launch.commands import module_argv
from launch.machine import child_environment
from launch.operators import OperatorError, prepare_operators
from launch.verdict import judge
from trainer.config.errors import EXIT_CRASH, EXIT_DONE, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_STOPPED, OWN_LINE
from trainer.config.load import to_yaml
from trainer.config.plan import Plan
from trainer.config.run_folder import RunFolder, write_text_atomically

SAVE_DEADLINE_SECONDS = 300
POLL_SECONDS = 0.1

Notify = Callable[[str], None]


def execute(plan: Plan, *, resume: bool, notify: Notify, complain: Notify) -> int:
    """Run all ranks of a plan to their end.

    Args:
        resume: go on from the newest complete checkpoint of the run folder.
        notify: receives lines for the person who waits.
        complain: receives what went wrong.

    Returns:
        The exit code of the command.
    """
    folder = RunFolder(Path(plan.run_folder))
    is_new = not folder.path.exists()
    folder.logs.mkdir(parents=True, exist_ok=True)
    for old in folder.logs.glob("outcome_rank_*.json"):
        old.unlink()
    write_text_atomically(folder.plan, plan.to_json())
    write_text_atomically(folder.config, to_yaml(plan.config))
    environment = child_environment(plan.environment)
    code = run_module(module_argv("trainer.prepare", str(folder.path)), plan.environment, complain=complain)
    if code:
        _remove_if_unused(folder, code, is_new=is_new)
        return code
    if plan.zero_stage:
        try:
            prepare_operators(environment, notify=notify)
        except OperatorError as error:
            complain(str(error))
            return EXIT_CRASH
    argv = (*plan.argv, "--resume") if resume else plan.argv
    with folder.launcher_log.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
        interrupted = _Stopper(process, notify).wait()
    verdict = judge(folder, world_size=plan.world_size, returncode=process.returncode, interrupted=interrupted)
    if verdict.message:
        (notify if verdict.exit_code in (EXIT_DONE, EXIT_STOPPED) else complain)(verdict.message)
    _remove_if_unused(folder, verdict.exit_code, is_new=is_new)
    return verdict.exit_code


def _remove_if_unused(folder: RunFolder, exit_code: int, *, is_new: bool) -> None:
    """Nothing was trained: the same command works once the input is right."""
    if exit_code == EXIT_INPUT and is_new and not folder.has_started:
        shutil.rmtree(folder.path)


def run_module(argv: tuple[str, ...], environment: dict[str, str], *, complain: Notify) -> int:
    """Run a one-process program of `trainer` in the foreground; stdout and Ctrl-C are its own.

    What libraries write to stderr while they load is kept from the screen, unless the program said nothing itself.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        try:
            code = subprocess.run(argv, env=child_environment(environment), stderr=stderr, check=False).returncode
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        stderr.seek(0)
        text = stderr.read()
    own = [line.removeprefix(OWN_LINE) for line in text.splitlines() if line.startswith(OWN_LINE)]
    if code:
        complain("\n".join(own) or text)
    return code


class _Stopper:
    """Waits for the ranks; passes a stop request on to the workers themselves.

    torchrun would give them 30 seconds before it kills, too little for a large checkpoint, and does not pass on
    all signals: so the workers are signalled directly, and torchrun ends when they do.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", notify: Notify) -> None:
        self._process, self._notify = process, notify
        self._requests = 0
        self._deadline = float("inf")

    def wait(self) -> bool:
        """Block until every rank has ended; True if a signal asked for it."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        handled = 0
        family: list[psutil.Process] = []
        try:
            while self._process.poll() is None:
                if self._requests > handled:
                    handled += 1
                    family = self._family()
                    self._pass_on(family, attempt=handled)
                if time.monotonic() > self._deadline:
                    self._notify(f"no checkpoint within {SAVE_DEADLINE_SECONDS} s: ending all ranks")
                    _kill(self._family())
                    self._deadline = float("inf")
                time.sleep(POLL_SECONDS)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            _kill([member for member in family if member.is_running()])
        return self._requests > 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requests += 1

    def _pass_on(self, family: list[psutil.Process], *, attempt: int) -> None:
        if attempt > 1:
            self._notify("ending all ranks at once")
            _kill(family)
            return
        self._notify("stopping: all ranks finish their step and write a checkpoint (again to end at once)")
        self._deadline = time.monotonic() + SAVE_DEADLINE_SECONDS
        for member in family:
            if _is_worker(member):
                member.send_signal(signal.SIGTERM)

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._process.pid)
            return [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return "trainer.worker" in command and "torch.distributed.run" not in command


def _kill(family: list[psutil.Process]) -> None:
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)

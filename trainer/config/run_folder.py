"""Names of everything inside a run folder: the interface between stages.

No reading or writing of contents here beyond small JSON values; no torch.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STEP_FOLDER = re.compile(r"^step_(\d{6,})$")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def plan(self) -> Path:
        """The frozen plan that every rank executes."""
        return self.path / "plan.json"

    @property
    def config(self) -> Path:
        """The resolved configuration, as YAML that `retain train` takes again."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files: `tensorboard --logdir` reads this."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder a complete checkpoint."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Per-example records, one folder a measured step."""
        return self.path / "evaluation"

    @property
    def logs(self) -> Path:
        """Everything that libraries print, one file a rank, and each rank's outcome."""
        return self.path / "logs"

    @property
    def launcher_log(self) -> Path:
        """What the launcher and ranks that could not start wrote to stderr."""
        return self.logs / "launcher.log"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after optimizer step `step`."""
        return self.checkpoints / f"step_{step:06d}"

    def records(self, step: int, task: str) -> Path:
        """Per-example records of one evaluation task, measured after optimizer step `step`."""
        return self.evaluation / f"step_{step:06d}" / f"{task}.jsonl"

    def null_records(self, task: str) -> Path:
        """Per-example records of the base, measured a second time in other batches."""
        return self.evaluation / "step_000000" / "null" / f"{task}.jsonl"

    def kept_tokens(self, task: str) -> Path:
        """The base's most likely tokens on the text of one evaluation task."""
        return self.evaluation / "step_000000" / "kept" / f"{task}.npz"

    @property
    def baseline_notes(self) -> Path:
        """How long the measurement before training took."""
        return self.evaluation / "step_000000" / "notes.json"

    @property
    def order(self) -> Path:
        """Step, task and id of every example that was trained on (run.record_order)."""
        return self.path / "order.csv"

    def order_notes(self, rank: int) -> Path:
        """What one rank trained on, from which `order` is put together."""
        return self.logs / f"order_rank_{rank:05d}.csv"

    def outcome(self, rank: int) -> Path:
        """How a rank ended, written by that rank."""
        return self.logs / f"outcome_rank_{rank:05d}.json"

    def complete_checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first. An unfinished one has another name."""
        if not self.checkpoints.is_dir():
            return []
        matches = (_STEP_FOLDER.match(entry.name) for entry in self.checkpoints.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    @property
    def has_started(self) -> bool:
        """True once the folder holds something of a run that must not be lost."""
        return self.metrics.exists() or bool(self.complete_checkpoints()) or self.evaluation.exists()

    def foreign_entries(self) -> list[str]:
        """Names in the folder that are not from a run that never started: somebody else's files."""
        if not self.path.is_dir():
            return [self.path.name] if self.path.exists() else []
        own = {self.plan.name, self.config.name, self.logs.name}
        return sorted(entry.name for entry in self.path.iterdir() if entry.name not in own)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON value atomically, keys in the given order."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json_object(path: Path) -> dict[str, Any] | None:
    """A JSON object that another process may be writing or removing; None where there is no whole one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None

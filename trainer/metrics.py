"""Numbers of a run, on the main rank: metrics.jsonl and TensorBoard. The only file that knows tensorboard."""

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from trainer.config.run_folder import RunFolder, write_text_atomically


class Metrics:
    """Appends to both places; every value is a finite number with a slash-separated name."""

    def __init__(self, folder: RunFolder, *, first_step: int) -> None:
        """Go on after `first_step` completed steps: what an interrupted run logged beyond them is removed."""
        folder.path.mkdir(parents=True, exist_ok=True)
        _keep_steps_up_to(folder.metrics, first_step)
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line and one point for each value, after `step` completed optimizer steps."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def write_text(self, name: str, text: str) -> None:
        """A text panel in TensorBoard, in Markdown."""
        self._board.add_text(name, text)

    def write_figure(self, name: str, figure: Figure, step: int) -> None:
        """A figure in TensorBoard."""
        self._board.add_figure(name, figure, step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()


def _keep_steps_up_to(path: Path, step: int) -> None:
    if path.exists():
        whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        write_text_atomically(path, "".join(line for line in whole if json.loads(line)["step"] <= step))

"""How one model did on each example of a task: one JSON object a line, the same bytes for the same records.

The interface between measuring and comparing; knows nothing of either.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path

from trainer.config.errors import DataError
from trainer.config.run_folder import write_text_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRecord:
    """How one model did on one example."""

    id: str
    """Unique within the task; the key of the join."""
    prompt_sha256: str
    """Hash of exactly what the model was given."""
    scorer: str
    """Name and version of the scorer: `token_nll@1`, `exact_match@1`."""
    value: float
    """kind text: summed nats over the tokens; otherwise a score in [0, 1]."""
    weight: float
    """kind text: number of tokens; otherwise 1."""
    prompt: str
    """What the model was given, readable."""
    target: str
    """What it should have said; may be empty for kind text."""
    answer: str | None
    """What it said; None where nothing is said."""
    cluster: str | None = None
    """Examples of one cluster (questions on one passage) are not independent; None: it stands alone."""
    candidate_nats: tuple[float, ...] = ()
    """kind choice: negative log-likelihood of each candidate; otherwise empty."""
    num_bytes: int | None = None
    """kind text: UTF-8 bytes of the measured text."""
    is_parsed: bool = True
    """False where nothing that the scorer can read was answered: a failure of format, not of knowledge."""
    kl_nats: float | None = None
    """kind text, where there is a base to compare with: summed KL(base || model) over the tokens; see drift.py."""
    num_agreeing_tokens: int | None = None
    """As `kl_nats`: tokens at which both models hold the same token for the most likely one."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(
                f"example {self.id!r}: value is {self.value}, which cannot be compared; did the model diverge?"
            )
        if not all(math.isfinite(nats) for nats in (*self.candidate_nats, self.kl_nats or 0.0)):
            raise ValueError(f"example {self.id!r}: a log-likelihood is not finite; did the model diverge?")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"example {self.id!r}: weight is {self.weight}, a positive number is needed")


def write_records(path: Path, records: Iterable[ExampleRecord]) -> None:
    """Write one JSON object a line, sorted by id: the same records give the same bytes. Atomic."""
    ordered = sorted(records, key=attrgetter("id"))
    # Escaped to ASCII: a model's answer may hold a lone surrogate, which UTF-8 cannot.
    lines = [json.dumps(asdict(record), allow_nan=False) + "\n" for record in ordered]
    write_text_atomically(path, "".join(lines))


def read_records(path: Path) -> list[ExampleRecord]:
    """Read the records of one task, in the order of the file.

    Raises:
        DataError: the file is missing, or a line is not a record.
    """
    try:
        with path.open("rb") as lines:
            return [_parse_record(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Was this task evaluated at this step?") from None


def _parse_record(line: bytes, *, where: str) -> ExampleRecord:
    """One record from one line of JSON; raises DataError naming file and line."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). The file is damaged: evaluate this task again.") from None
    keys = [field.name for field in fields(ExampleRecord)]
    if not isinstance(raw, dict) or set(raw) != set(keys):
        raise DataError(f"{where}: not a record. Exactly these keys are needed: {', '.join(keys)}.")
    numbers, texts = ("value", "weight"), ("id", "prompt_sha256", "scorer", "prompt", "target")
    wrong = [key for key in numbers if not isinstance(raw[key], int | float) or isinstance(raw[key], bool)]
    wrong += [key for key in texts if not isinstance(raw[key], str)]
    wrong += [key for key in ("answer", "cluster") if not isinstance(raw[key], str | None)]
    wrong += [key for key in ("num_bytes", "num_agreeing_tokens") if type(raw[key]) not in (int, type(None))]
    wrong += ["kl_nats"] if type(raw["kl_nats"]) not in (int, float, type(None)) else []
    wrong += ["is_parsed"] if not isinstance(raw["is_parsed"], bool) else []
    nats = raw["candidate_nats"]
    wrong += ["candidate_nats"] if not isinstance(nats, list) or {*map(type, nats)} - {int, float} else []
    if wrong:
        raise DataError(f"{where}: wrong type of {', '.join(wrong)}. Evaluate this task again.")
    try:
        return ExampleRecord(**{**raw, "candidate_nats": tuple(nats)})
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: {error}") from None

"""The page about a run's data as a value: what `retain data` shows, before it is text or HTML. Shapes: K tasks."""

from dataclasses import dataclass

from trainer.data.token_store import Summary


@dataclass(frozen=True, slots=True)
class Histogram:
    """Lengths of the examples of a task in tokens."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]
    """One more than counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPart:
    """One task."""

    name: str
    summary: Summary
    num_measured: int
    """Held-out examples that are measured."""

    num_draws: int
    """Examples of the task in the whole run, repeats included."""

    lengths: Histogram
    is_streamed: bool = False
    """Only its first examples are read, and stand here; nobody knows how many there are."""

    @property
    def repeats(self) -> float | None:
        """How many times the run sees each example, on average; None where nobody knows how many there are."""
        return None if self.is_streamed else self.num_draws / self.summary.num_examples


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the run."""

    end_step: int
    """Completed steps at its end; it begins where the window before it ends."""

    asked_K: tuple[float, ...]
    realised_K: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ExamplePart:
    """One training example as the model sees it."""

    task: str
    example_id: str
    num_tokens: int
    pieces: tuple[tuple[str, bool], ...]
    """Its text in pieces, each with whether it is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that is shown."""

    num_steps: int
    num_draws: int
    """Examples of the whole run, repeats included."""

    unit: str
    """What shares are shares of: examples or tokens."""

    is_steady: bool
    """Whether every step asks for the same shares."""

    stage_starts: tuple[int, ...]
    """First step of each stage, from 0."""

    tasks: tuple[TaskPart, ...]
    quarters: tuple[Window, ...]
    windows: tuple[Window, ...]
    """The same in finer parts, for plots."""

    slots_used: float | None
    """Share of the slots of packed rows that hold a token; None where rows are not packed."""

    examples: tuple[ExamplePart, ...]
    notes: tuple[str, ...]
    """What else is to be told: held-out examples left out, overlaps."""

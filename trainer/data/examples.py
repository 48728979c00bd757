"""The examples of one task: put into words, and to train on or held out. Never both."""

from collections.abc import Mapping
from typing import Any, Protocol

from trainer.config.data_schema import TaskSection
from trainer.data.leakage import normalised
from trainer.data.splits import is_held_out
from trainer.data.templates import Conversations, Rendered, TaskTemplates


class Render(Protocol):
    """A row of columns to an example."""

    def __call__(self, row: Mapping[str, Any], *, where: str) -> Rendered:
        """Raises DataError, beginning with `where`, for a row that cannot be put into words."""
        ...


def renderer(name: str, task: TaskSection) -> Render:
    """How the rows of a task become examples.

    Raises:
        DataError: a template is not Jinja.
    """
    return Conversations(name).render if task.format == "chat" else TaskTemplates(name, task.all_templates).render


def is_held_out_row(example: Rendered, task: TaskSection) -> bool:
    """Where `train` is split: by the question if there is one, so that another answer to it, or the same one in
    capitals, is on the same side."""
    question = normalised(example.bare_prompt) or normalised(example.content)
    return is_held_out(question, share=task.heldout_share)

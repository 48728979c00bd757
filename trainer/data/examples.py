"""The examples of one task, read and put into words: those to train on, or those held out. Never both."""

from collections.abc import Iterator
from typing import Literal

from trainer.config.data_schema import TaskSection
from trainer.config.errors import DataError
from trainer.data.leakage import normalised
from trainer.data.sources import BadExamples, Row, read_rows
from trainer.data.splits import is_held_out
from trainer.data.templates import Rendered, TaskTemplates

Part = Literal["train", "heldout"]


def task_examples(name: str, task: TaskSection, *, part: Part, bad: BadExamples) -> Iterator[tuple[Row, Rendered]]:
    """Examples of one part in the order of the source. Without a `heldout` source, `train` is split by hash.

    Raises:
        DataError: a source is missing, a template is not Jinja, or `bad` refuses what it is told.
    """
    templates = TaskTemplates(name, task.all_templates)
    source = task.train if part == "train" or task.heldout is None else task.heldout
    for row in read_rows(source, columns=task.columns, bad=bad):
        try:
            rendered = templates.render(row.values, where=row.where)
        except DataError as error:
            bad.add(str(error))
            continue
        if task.heldout is None and _is_held_out(rendered, task) != (part == "heldout"):
            continue
        yield row, rendered


def _is_held_out(example: Rendered, task: TaskSection) -> bool:
    """By the question where there is one: another answer to it, or the same one in capitals, is on the same side."""
    question = normalised(example.bare_prompt) or normalised(example.content)
    return is_held_out(question, share=task.heldout_share)

"""Instruction templates: a row of columns in, prompt and response texts out.

Templates are Jinja, sandboxed, and strict: a column that a row lacks is an error.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from trainer.config.errors import DataError


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as text."""

    example_id: str
    prompt: str
    response: str


class TaskTemplate:
    """The compiled prompt and response templates of one task."""

    def __init__(self, *, task: str, prompt: str, response: str) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_refuse_null
        )
        self.task = task
        self.columns: dict[str, set[str]] = {}
        self._templates: dict[str, jinja2.Template] = {}
        for field, source in (("prompt", prompt), ("response", response)):
            try:
                self.columns[field] = jinja2.meta.find_undeclared_variables(environment.parse(source))
                self._templates[field] = environment.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise DataError(f"data.tasks.{task}.{field}: not a Jinja template: {error.message}.") from None

    def render(self, row: Mapping[str, Any], *, where: str) -> Rendered:
        """Fill both templates from one row.

        Raises:
            DataError: a column is missing, or the response is empty; the message begins with `where`.
        """
        texts = {field: self._fill(field, row, where=where) for field in self._templates}
        if not texts["response"].strip():
            raise DataError(
                f"{where}: the response of task {self.task} is empty: nothing to learn from. Remove the row."
            )
        return Rendered(_example_id(row, texts), texts["prompt"], texts["response"])

    def _fill(self, field: str, row: Mapping[str, Any], *, where: str) -> str:
        try:
            return self._templates[field].render(row)
        except jinja2.UndefinedError:
            absent = ", ".join(sorted(self.columns[field] - set(row)))
            missing = f"column {absent}" if absent else "a value inside a column"
            raise DataError(
                f"{where}: missing {missing}, which data.tasks.{self.task}.{field} uses. "
                f"Columns here: {', '.join(sorted(row))}."
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise DataError(f"{where}: data.tasks.{self.task}.{field} cannot be rendered: {error}.") from None


def _refuse_null(value: Any) -> Any:
    """Called by Jinja on each value before it becomes text; without it, null would be taught as the word None."""
    if value is None:
        raise ValueError("a column that it shows is null")
    return value


def _example_id(row: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The row's own id, or one made from its content: the same wherever the file lies."""
    if "id" in row:
        return str(row["id"])
    return hashlib.sha256(f"{texts['prompt']}\0{texts['response']}".encode()).hexdigest()[:16]

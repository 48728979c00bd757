"""Instruction templates: a row of columns in, prompt and response texts out.

Templates are Jinja, sandboxed, and strict: a column that a row lacks is an error.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from trainer.config.data_schema import TemplateSection
from trainer.config.errors import DataError
from trainer.data.chat import Message, read_messages

MESSAGES = "messages"
"""The column of a conversation."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as text."""

    example_id: str
    prompt: str
    response: str
    bare_prompt: str = ""
    """The prompt without the words that its template brings: what tells one example's question from another's."""

    where: str = ""
    """Where its row stands."""

    messages: tuple[Message, ...] = ()
    """The whole conversation, where it is one; `response` is its last answer."""

    @property
    def content(self) -> str:
        """What is compared to tell one example from another: the bare prompt and the response."""
        return f"{self.bare_prompt}\n{self.response}"


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
        bare = environment.parse(prompt)
        for words in bare.find_all(jinja2.nodes.TemplateData):
            words.data = " "
        self._bare_prompt = environment.from_string(bare)

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
        bare_prompt = self._bare_prompt.render(row)
        return Rendered(_example_id(row, texts), texts["prompt"], texts["response"], bare_prompt, where)

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


class TaskTemplates:
    """The templates of one task. Which one an example gets follows from its id, in every run and on every rank."""

    def __init__(self, task: str, templates: Sequence[TemplateSection]) -> None:
        self._templates = [TaskTemplate(task=task, prompt=t.prompt, response=t.response) for t in templates]

    def render(self, row: Mapping[str, Any], *, where: str) -> Rendered:
        """Fill the example's template. Its id and content are those of the first one.

        Raises:
            DataError: see `TaskTemplate.render`.
        """
        first = self._templates[0].render(row, where=where)
        digest = hashlib.sha256(f"template {first.example_id}".encode()).digest()
        number = int.from_bytes(digest[:8], "big") % len(self._templates)
        if number == 0:
            return first
        chosen = self._templates[number].render(row, where=where)
        return replace(first, prompt=chosen.prompt, response=chosen.response)


class Conversations:
    """Rows that hold chat messages."""

    def __init__(self, task: str) -> None:
        self._task = task

    def render(self, row: Mapping[str, Any], *, where: str) -> Rendered:
        """The conversation of one row; its last answer is the response.

        Raises:
            DataError: the column is missing, or holds no conversation.
        """
        if MESSAGES not in row:
            raise DataError(
                f"{where}: missing column {MESSAGES}, which data.tasks.{self._task}.format chat reads. "
                f"Columns here: {', '.join(sorted(row))}."
            )
        messages = read_messages(row[MESSAGES], where=where)
        before, answer = messages[:-1], messages[-1].content
        texts = {"prompt": "".join(f"{m.role}: {m.content}\n" for m in before), "response": answer}
        bare_prompt = "\n".join(message.content for message in before)
        return Rendered(_example_id(row, texts), texts["prompt"], answer, bare_prompt, where, messages)


def _refuse_null(value: Any) -> Any:
    """Called by Jinja on each value before it becomes text; without it, null would be taught as the word None."""
    if value is None or isinstance(value, bytes):
        raise ValueError(f"a column that it shows is {'null' if value is None else 'bytes, not text'}")
    return value


def _example_id(row: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The row's own id, or one made from its content: the same wherever the file lies."""
    if "id" in row:
        return str(row["id"])
    return hashlib.sha256(f"{texts['prompt']}\0{texts['response']}".encode()).hexdigest()[:16]

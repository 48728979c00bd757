"""Tasks of EleutherAI's lm-evaluation-harness as rows: what they would request of a model, for our own scoring.

The only door to `lm_eval`, which is optional and heavy, so that it is imported where it is used. Contexts, solved
examples and continuations are the task's own, document by document, as `simple_evaluate` asks for them in one process
without a limit. Knows nothing of models, tokens and metrics.
"""

import difflib
import functools
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from trainer.config.data_schema import LmEvalSource, describe
from trainer.config.errors import DataError
from trainer.data.files import Record, Refuse

HOW_TO_INSTALL = "pip install 'retain[lm-eval]'"
DOC_HASH_DIGITS = 16
"""Of the 64 hexadecimal digits of a document's hash, those in an id: as in records of lm-eval's own sample files."""

MAX_NAMED = 10
PYTHON_SEED, NUMPY_SEED = 0, 1234
"""What `simple_evaluate` sets before it loads a task, whose own code may draw from either."""

_FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, jinja2.TemplateError),
)
"""What a task's own templates, code and data end in."""


def read_task(source: LmEvalSource, refuse: Refuse) -> Iterator[Record]:
    """The documents of a task in their order, with columns `id`, `prompt`, `answer` and, of a multiple choice,
    `choices`. Documents that cannot be used go to `refuse`.

    The id is the number of the document and its hash. `prompt` is the whole context: description, solved examples,
    question. White space at its end begins the continuations instead, where lm-eval's models score it as well.

    Raises:
        DataError: lm-eval is not installed, the task is unknown, a group or of a kind that is not taken, its data
            cannot be read, or it has no labels.
    """
    name = describe(source)
    with _seeded():
        task = _load(source)
        _refuse_unfit(task, name)
        task.set_fewshot_seed(seed=source.seed)
        found = [
            (f"{name}: document {number}", _row(task, number, doc, name)) for number, doc in _documents(task, name)
        ]
    if not any(isinstance(row, dict) for _, row in found):
        raise DataError(f"{name}: no document can be used, of {len(found)}. First: {found[0][0]}: {found[0][1]}")
    for where, row in found:
        if isinstance(row, dict):
            yield where, row
        else:
            refuse(f"{where}: {row}")


def version_of_lm_eval() -> str:
    """Version of the installed lm-eval."""
    return version("lm_eval")


@contextmanager
def _seeded() -> Iterator[None]:
    """The harness's own seeds inside; afterwards random states are as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(PYTHON_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _load(source: LmEvalSource) -> Any:
    """The task, with its data, and with as many solved examples as are wanted."""
    name = describe(source)
    manager = _manager_of(source)
    try:
        (task,) = manager.load(source.lm_eval)["tasks"].values()
    except _FAULTS as error:
        raise DataError(
            f"{name}: lm-eval cannot load it ({_one_line(error)}). If its data is not on this machine, fetch it where "
            f'there is network: python -c "from lm_eval.tasks import TaskManager; TaskManager({_as_argument(source)})'
            f'.load({source.lm_eval!r})"'
        ) from None
    own = task.get_config("num_fewshot")
    if own == 0 and source.num_fewshot:
        raise DataError(
            f"{name}: num_fewshot: found {source.num_fewshot}, but the task itself says 0, which lm-eval keeps to. "
            "Remove num_fewshot."
        )
    task.set_config("num_fewshot", (own or 0) if source.num_fewshot is None else source.num_fewshot)
    return task


def _as_argument(source: LmEvalSource) -> str:
    return f"include_path={source.include_path!r}" if source.include_path else ""


def _manager_of(source: LmEvalSource) -> Any:
    """What knows the task: of the user's own folder, else of the harness itself."""
    name = describe(source)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DataError(f"{name}: lm-eval is not installed ({error}). Install it: {HOW_TO_INSTALL}") from None
    managers = []
    if source.include_path is not None:
        if not Path(source.include_path).is_dir():
            raise DataError(f"{name}: include_path: no such folder: {source.include_path} (looked in {Path.cwd()}).")
        managers.append(TaskManager(include_path=source.include_path, include_defaults=False))
    if not managers or source.lm_eval not in managers[0].task_index:
        managers.append(_built_in())
    manager = managers[-1]
    if source.lm_eval not in manager.task_index:
        names = sorted({known for one in managers for known in one.all_subtasks})
        close = difflib.get_close_matches(source.lm_eval, names, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        where = f"lm-eval {version_of_lm_eval()}" + (f" and {source.include_path}" if source.include_path else "")
        raise DataError(f"{name}: no such task in {where} ({len(names)} tasks).{hint}")
    if source.lm_eval not in manager.all_subtasks:
        raise DataError(f"{name}: a group of tasks; name one of them: {_members(manager.task_index[source.lm_eval])}.")
    return manager


@functools.cache
def _built_in() -> Any:
    """The harness's own tasks. They are installed files that do not change, and take seconds to look through."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _members(entry: Any) -> str:
    """Tasks and groups right below a group or a tag."""
    entries = sorted(entry.tags) if entry.cfg is None else entry.cfg.get("task", [])
    names = [one if isinstance(one, str) else str(one.get("task", one.get("group"))) for one in entries]
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def _refuse_unfit(task: Any, name: str) -> None:
    """Raise where what the task asks is not what kinds choice, generate and text measure."""
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(task, ConfigurableTask):
        raise DataError(f"{name}: a task written in Python, whose requests only lm-eval understands. Take another one.")
    kind = task.OUTPUT_TYPE
    if kind not in ("multiple_choice", "generate_until", "loglikelihood"):
        raise DataError(f"{name}: output_type {kind}; wanted multiple_choice, generate_until or loglikelihood.")
    if task.config.doc_to_image is not None or task.config.doc_to_audio is not None:
        raise DataError(f"{name}: asks with pictures or sound, and only text is measured. Take another one.")
    if task.multiple_input:
        raise DataError(
            f"{name}: its options stand in the context, not after it (as in winogrande), and only what follows one "
            "prompt is compared. Take another one."
        )
    if kind == "multiple_choice" and task.config.process_results is not None:
        raise DataError(
            f"{name}: scores its options by code of its own (process_results), not by the right one. Take another one."
        )


def _documents(task: Any, name: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from task.doc_iterator(rank=0, limit=None, world_size=1)
    except _FAULTS as error:
        raise DataError(f"{name}: lm-eval cannot read its documents ({_one_line(error)}).") from None


def _row(task: Any, number: int, doc: Any, name: str) -> dict[str, Any] | str:
    """The row of a document, or what is wrong with it. To be called in the order of the documents, because each one
    draws its solved examples."""
    from lm_eval.utils import handle_non_serializable, hash_string

    try:
        context = task.fewshot_context(
            doc, num_fewshot=task.get_config("num_fewshot"), gen_prefix=task.doc_to_prefix(doc)
        )
        made = task.construct_requests(doc=doc, ctx=context, metadata=(task.task_name, number, 1))
        requests = [one.args for one in (made if isinstance(made, list) else [made])]
        target = task.doc_to_target(doc)
        options = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
    except _FAULTS as error:
        raise DataError(f"{name}: document {number}: lm-eval cannot put it into words ({_one_line(error)}).") from None
    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    row = {"id": f"{number}-{hash_string(text)[:DOC_HASH_DIGITS]}"}
    match task.OUTPUT_TYPE:
        case "multiple_choice":
            beside = _choice(requests, options or [], target)
        case "loglikelihood":
            beside = _continuation(requests)
        case _:
            beside = _answer(requests, options, target)
    return beside if isinstance(beside, str) else row | beside


def _choice(requests: Sequence[tuple[Any, ...]], options: Sequence[str], target: Any) -> dict[str, Any] | str:
    """Requests are one for each option, and for acc_mutual_info as many again, without the context."""
    pairs = requests[: len(options)]
    if len(requests) not in (len(options), 2 * len(options)) or len({context for context, _ in pairs}) != 1:
        return "not one request for each option after one context."
    index = _index_of(target, options)
    if isinstance(index, str):
        return index
    prompt, space = _without_last_space(pairs[0][0])
    if not prompt:
        return "nothing stands in front of the options, and what their first token follows differs between models."
    choices = [space + continuation for _, continuation in pairs]
    leads = {choice[: len(choice) - len(choice.lstrip())] for choice in choices}
    if len(leads) > 1 or any(not choice.strip() or choice != choice.rstrip() for choice in choices):
        return f"white space around its options differs, ends them or is all of them: {choices}."
    return {"prompt": prompt, "choices": choices, "answer": choices[index]}


def _continuation(requests: Sequence[tuple[Any, ...]]) -> dict[str, Any] | str:
    ((context, continuation),) = requests
    prompt, space = _without_last_space(context)
    if not isinstance(continuation, str):
        return f"its target is {continuation!r}, not one text to continue with."
    if not continuation.strip():
        return "no label: nothing to continue with."
    return {"prompt": prompt, "answer": space + continuation}


def _answer(requests: Sequence[tuple[Any, ...]], options: Sequence[str] | None, target: Any) -> dict[str, Any] | str:
    if len(requests) != 1:
        return "not one request."
    if options is not None:
        index = _index_of(target, options)
        return index if isinstance(index, str) else {"prompt": requests[0][0], "answer": str(options[index])}
    texts = [str(one) for one in (target if isinstance(target, list) else [target]) if one is not None]
    if not any(text.strip() for text in texts):
        return "no label: its target is empty."
    if len(set(texts)) > 1:
        return f"{len(texts)} right answers, and an answer is compared with one: {texts[:MAX_NAMED]}."
    return {"prompt": requests[0][0], "answer": texts[0]}


def _index_of(target: Any, options: Sequence[str]) -> int | str:
    """Index of the right option, or why there is none."""
    targets = target if isinstance(target, list) else [target]
    if len(targets) != 1:
        return f"{len(targets)} right options, and one can be chosen."
    found = targets[0]
    index = options.index(found) if isinstance(found, str) and found in options else found
    if not isinstance(index, int) or not 0 <= index < len(options):
        return f"no label: its target is {found!r}, not one of {len(options)} options."
    return int(index)


def _without_last_space(context: str) -> tuple[str, str]:
    """A context, and the white space at its end."""
    bare = context.rstrip()
    return bare, context[len(bare) :]


def _one_line(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}".rstrip(": .")

"""Held-out examples, chosen and encoded once, kept on disk with their texts."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.config.data_schema import TaskSection, TemplateSection, describe
from trainer.config.errors import DataError
from trainer.config.run_folder import write_json
from trainer.data.artifact import Builder, Say, made_once
from trainer.data.chunks import TaskRecipe, heldout_chunk, in_order
from trainer.data.examples import renderer
from trainer.data.fingerprint import Fingerprints, key_of
from trainer.data.heldout import write_heldout
from trainer.data.sources import BadExamples, Row, read_rows
from trainer.data.templates import Rendered
from trainer.data.tokenize import PromptEncoder
from trainer.evaluation.examples import EvaluationData, EvaluationExample, Selection
from trainer.evaluation.suite import EvaluationTask
from trainer.evaluation.suite_schema import SuiteTask

EXAMPLES, HELDOUT = "examples.json", "heldout.jsonl"


def examples_key(fingerprints: Fingerprints, spec: SuiteTask, tokenizer_key: str) -> str:
    """What the examples of a task and those in front of its prompts hold now, and which tokenizer reads them."""
    solved = fingerprints.source(spec.few_shot.data) if spec.few_shot else []
    return key_of(fingerprints.source(spec.data), solved, tokenizer_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One capability: all that is measured of it, on the same held-out examples."""

    folder: Path
    data: list[EvaluationData]
    """One for each evaluation task."""

    num_bad: int
    """Held-out examples that were skipped."""


def prepare_capability(
    cache: Path,
    tasks: Sequence[EvaluationTask],
    *,
    source_key: str,
    encoder: PromptEncoder,
    context_tokens: int,
    max_examples: int,
    on_bad_example: str,
    processes: int,
    say: Say,
    timeout_seconds: float,
) -> Prepared:
    """Open the held-out examples of the tasks of one capability, made now where they are not there yet.

    Args:
        cache: folder of all prepared data.
        source_key: what the source holds and which tokenizer reads it.

    Raises:
        DataError: examples are bad and may not be, or fewer than two fit the context.
    """
    spoken = [task.model_dump(mode="json", exclude={"trained": {"weight", "train", "heldout"}}) for task in tasks]
    is_split = tasks[0].trained is not None and tasks[0].trained.heldout is None
    for one in spoken:
        del one["spec"]["data"]  # what it holds is in `source_key`
        for beside in ("margin", "tier", "capability", "recovery_data"):  # they say nothing of the examples
            del one["spec"][beside]
        del one["capability"]
    key = key_of("evaluation with clusters", source_key, spoken, is_split, context_tokens, max_examples, on_bad_example)
    folder = cache / "evaluation" / key
    what = f"held-out examples of {tasks[0].examples}"
    with made_once(folder, what=what, say=say, timeout_seconds=timeout_seconds) as builder:
        if builder is not None:
            selections = [
                Selection(
                    task,
                    encoder=encoder,
                    context_tokens=context_tokens,
                    max_examples=max_examples,
                    solved=_solved(task),
                )
                for task in tasks
            ]
            num_bad = _show_all(selections, on_bad_example, processes=processes, builder=builder)
            _write(builder.folder, tasks[0].examples, selections, num_bad)
    value = json.loads((folder / EXAMPLES).read_text(encoding="utf-8"))
    data = [_read(one) for one in value["tasks"]]
    return Prepared(folder=folder, data=data, num_bad=value["num_bad"])


def _show_all(selections: Sequence[Selection], on_bad_example: str, *, processes: int, builder: Builder) -> int:
    """Show every held-out example to all selections; how many were bad."""
    task = selections[0].task
    bad = BadExamples(on_bad_example)  # type: ignore[arg-type]  # error or skip
    for row, example in all_examples(task, bad, processes=processes):
        try:
            shows = [selection.consider(row, example) for selection in selections]
        except DataError as error:
            bad.add(str(error))
            continue
        for show in shows:
            show()
        builder.progress(f"{bad.num_read:,} examples read")
    for complaint in sorted({complaint for selection in selections for complaint in selection.repeated}):
        bad.add(complaint)
    return bad.finish(f"{task.examples}: held-out examples")


def _solved(task: EvaluationTask) -> list[Rendered]:
    """The solved examples for a task's prompts, by the hash of their id, with different questions; one to spare."""
    few_shot = task.spec.few_shot
    if few_shot is None:
        return []
    template = TemplateSection(prompt=task.spec.prompt, response=task.spec.response)
    section = TaskSection(train=few_shot.data, heldout=few_shot.data, columns={}, templates=(template,))
    render = renderer(task.name, section)
    found: dict[str, tuple[str, Rendered]] = {}
    for row in read_rows(few_shot.data, columns={}, bad=BadExamples("error")):
        example = render(row.values, where=row.where)
        key = hashlib.sha256(f"few-shot {example.example_id}".encode()).hexdigest()
        found[example.bare_prompt] = min((key, example), found.get(example.bare_prompt, ("~", example)), key=_first)
        if len(found) > few_shot.num_examples + 1:
            del found[max(found, key=lambda question: found[question][0])]
    if len(found) <= few_shot.num_examples:
        raise DataError(
            f"{describe(few_shot.data)}: {len(found)} different questions: wanted {few_shot.num_examples + 1} for "
            f"{few_shot.num_examples} in front of each prompt of {task.name}, so that none stands in front of itself."
        )
    return [example for _, example in sorted(found.values(), key=_first)]


def _first(pair: tuple[str, Rendered]) -> str:
    return pair[0]


def all_examples(task: EvaluationTask, bad: BadExamples, *, processes: int) -> Iterator[tuple[Row, Rendered]]:
    """Every held-out example of a task, rendered; what is wrong goes to `bad`."""
    spec = task.spec
    template = TemplateSection(prompt=spec.prompt, response=spec.response)
    section = task.trained or TaskSection(train=spec.data, heldout=spec.data, columns={}, templates=(template,))
    recipe = TaskRecipe(
        key="",
        name=task.examples,
        task=section,
        model_folder="",
        labels=(),
        chat_template=False,
        sequence_length_tokens=0,
        on_overlength="error",
    )
    rows = read_rows(section.heldout or section.train, columns=section.columns, bad=bad)
    for found, complaints in in_order(heldout_chunk, recipe, rows, processes=processes):
        for complaint in complaints:
            bad.add(complaint)
        yield from found


def _write(folder: Path, capability: str, selections: Sequence[Selection], num_bad: int) -> None:
    data = [selection.data() for selection in selections]
    for selection, one in zip(selections, data, strict=True):
        if len(one.examples) < 2:
            task = selection.task
            raise DataError(f"{describe(task.spec.data)}: one example of {task.name}: wanted at least 2 to compare.")
    texts = {source.example_id: source for one in data for source in one.sources}
    write_heldout(folder / HELDOUT, capability, texts.values())
    write_json(folder / EXAMPLES, {"num_bad": num_bad, "tasks": [_as_json(one) for one in data]})


def _as_json(data: EvaluationData) -> dict[str, Any]:
    return {
        "examples": [asdict(example) for example in data.examples],
        "num_dropped_overlength": data.num_dropped_overlength,
    }


def _read(value: dict[str, Any]) -> EvaluationData:
    return EvaluationData([_example(one) for one in value["examples"]], value["num_dropped_overlength"])


def _example(value: dict[str, Any]) -> EvaluationExample:
    ids: Iterable[list[int]] = value.pop("candidate_ids")
    return EvaluationExample(
        candidates=tuple(value.pop("candidates")),
        prompt_ids=tuple(value.pop("prompt_ids")),
        candidate_ids=tuple(map(tuple, ids)),
        **value,
    )

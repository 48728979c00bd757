"""Per-sample files of lm-evaluation-harness, `samples_<task>_<date>.jsonl`, as records of examples.

What `lm_eval run --log_samples --output_path` writes, read as of its version 0.4.13, so that two such runs
can be compared example by example. Knows nothing of models, nor of the comparison.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.config.errors import DataError
from trainer.evaluation.records import ExampleRecord

FILE_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.jsonl")
NO_FILTER = "none"
"""The harness's name for the filter of a task that names none."""

NOT_PARSED = "[invalid]"
"""What the harness's regex filter answers where nothing matches, unless the task names something else."""

PREFERRED_METRICS = ("exact_match", "acc")
DOC_HASH_DIGITS = 16
"""Of the 64 hexadecimal digits of a document's hash, those kept in an id."""

KEYS = ("doc_id", "target", "arguments", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash")
HOW_TO_WRITE = "Run lm_eval with --log_samples and --output_path, and give its samples_<task>_<date>.jsonl"


def read_lm_eval(
    path: Path, *, metric: str | None = None, filter_name: str | None = None
) -> dict[str, list[ExampleRecord]]:
    """Records by task name, of one per-sample file or of the newest file of each task in a folder, in their order.

    A filter or metric that is named counts for the tasks that have it. Otherwise `filter_name` is the only one, and
    `metric` is exact_match, else acc, else the only one. The id is the document's number and hash; `prompt_sha256` is
    of everything requested: contexts, options, settings of generation. The answer to a choice is the option that the
    metric prefers, or None where that contradicts the score, which then rests on something that is not in the file.

    Raises:
        DataError: what `find_sample_files` refuses, a damaged file, or a metric or filter absent or not chosen.
    """
    files = find_sample_files(path)
    samples = {task: _read_samples(file) for task, file in files.items()}
    filters = {task: {sample.filter_name for sample in found} for task, found in samples.items()}
    metrics = {task: set(found[0].scores) for task, found in samples.items()}
    for option, wanted, known in (("filter", filter_name, filters), ("metric", metric, metrics)):
        if wanted is not None and not any(wanted in names for names in known.values()):
            here = "; ".join(f"{task}: {', '.join(sorted(names))}" for task, names in known.items())
            raise DataError(f"{path}: no {option} {wanted!r}. Choose another --{option}; of {here}.")
    return {
        task: _records(samples[task], task=task, path=file, metric=metric, filter_name=filter_name)
        for task, file in files.items()
    }


def find_sample_files(path: Path) -> dict[str, Path]:
    """The newest per-sample file of each task, by task name: in a folder, in its only subfolder that has any, or
    `path` itself.

    Raises:
        DataError: nothing there, aggregated results only, a name that tells no task, or the files of several models.
    """
    newest: dict[str, tuple[str, Path]] = {}
    for file in _files_in(path) if path.is_dir() else [path]:
        task, date = _task_and_date(file)
        newest[task] = max(newest.get(task, (date, file)), (date, file))
    return {task: newest[task][1] for task in sorted(newest)}


def _records(
    samples: Sequence["_Sample"], *, task: str, path: Path, metric: str | None, filter_name: str | None
) -> list[ExampleRecord]:
    samples = _with_filter(samples, path=path, filter_name=filter_name)
    first_at: dict[str, str] = {}
    for sample in samples:
        if sample.doc_id in first_at:
            raise DataError(
                f"{sample.where}: document {sample.doc_id} occurs again, first at {first_at[sample.doc_id]}. "
                "Each may count once: give the file of one run."
            )
        first_at[sample.doc_id] = sample.where
    name = _choose_metric(samples[0], path=path, metric=metric)
    suffix = "" if samples[0].filter_name == NO_FILTER else f",{samples[0].filter_name}"
    return [_record(sample, metric=name, scorer=f"lm_eval:{task}:{name}{suffix}@1") for sample in samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """One line of the file: one document under one filter."""

    where: str
    doc_id: str
    doc_hash: str
    prompt_hash: str
    target: str
    requests: tuple[tuple[object, ...], ...]
    """Arguments of each request: context and continuation of each option, or context and settings."""
    responses: tuple[Any, ...]
    """Of each request, after the filter: text, or log-likelihood and whether it is the greedy one, as texts."""
    filter_name: str
    scores: dict[str, object]
    """Value of each metric."""


def _files_in(folder: Path) -> list[Path]:
    """Per-sample files of a folder or of its only subfolder that has any."""
    here = list(folder.glob("samples_*.jsonl"))
    below = list(folder.glob("*/samples_*.jsonl"))
    parents = sorted({file.parent.name for file in below})
    if not here and len(parents) > 1:
        raise DataError(f"{folder}: samples of several models: {', '.join(parents)}. Give the folder of one of them.")
    if not here and not below:
        has_results = any(folder.glob("**/results_*.json"))
        found = "aggregated results only, which hold no examples" if has_results else "no samples_*.jsonl"
        raise DataError(f"{folder}: {found}. {HOW_TO_WRITE}.")
    return here or below


def _task_and_date(path: Path) -> tuple[str, str]:
    """Task and date of a file's name, which alone tells the task."""
    if match := FILE_NAME.fullmatch(path.name):
        return match["task"], match["date"]
    is_aggregated = path.name.startswith("results_") and path.suffix == ".json"
    found = "aggregated results, which hold no examples" if is_aggregated else "the name tells no task and date"
    raise DataError(f"{path}: {found}. {HOW_TO_WRITE}.")


def _read_samples(path: Path) -> list[_Sample]:
    try:
        with path.open("rb") as lines:
            samples = [_parse(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {HOW_TO_WRITE}.") from None
    if not samples:
        raise DataError(f"{path}: empty. {HOW_TO_WRITE}.")
    return samples


def _parse(line: bytes, *, where: str) -> _Sample:
    """One line; raises DataError on anything but a sample of the harness."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). The file is damaged: run lm_eval again.") from None
    missing = [key for key in KEYS if not isinstance(raw, dict) or key not in raw]
    if missing:
        raise DataError(f"{where}: not a sample of lm-eval, {', '.join(missing)} missing. {HOW_TO_WRITE}.")
    wrong = [key for key in ("target", "filter", "doc_hash", "prompt_hash") if not isinstance(raw[key], str)]
    wrong += ["doc_id"] if not isinstance(raw["doc_id"], int | str) else []
    wrong += ["metrics"] if not _is_list_of(raw["metrics"], kind=str) or not set(raw["metrics"]) <= raw.keys() else []
    arguments, responses = raw["arguments"], raw["filtered_resps"]
    fits = isinstance(arguments, dict) and _is_list_of(list(arguments.values()), kind=dict) and all(arguments.values())
    fits = fits and isinstance(responses, list) and len(responses) == len(arguments)
    wrong += [] if fits else ["arguments or filtered_resps"]
    if wrong:
        raise DataError(f"{where}: not as lm-eval writes them: {', '.join(wrong)}. {HOW_TO_WRITE}.")
    return _Sample(
        where=where,
        doc_id=str(raw["doc_id"]),
        doc_hash=raw["doc_hash"],
        prompt_hash=raw["prompt_hash"],
        target=raw["target"],
        requests=tuple(tuple(request.values()) for request in arguments.values()),
        responses=tuple(responses),
        filter_name=raw["filter"],
        scores={metric: raw[metric] for metric in raw["metrics"]},
    )


def _is_list_of(value: Any, *, kind: type) -> bool:
    """A list with at least one entry, all of one type."""
    return isinstance(value, list) and bool(value) and all(isinstance(entry, kind) for entry in value)


def _with_filter(samples: Sequence[_Sample], *, path: Path, filter_name: str | None) -> list[_Sample]:
    """Samples of the filter that is named, or of the only one; raises DataError listing them otherwise."""
    found = sorted({sample.filter_name for sample in samples})
    chosen = [filter_name] if filter_name in found else found
    if len(chosen) > 1:
        raise DataError(f"{path}: several filters, and none of them is chosen. Add --filter, of {', '.join(found)}.")
    return [sample for sample in samples if sample.filter_name == chosen[0]]


def _choose_metric(sample: _Sample, *, path: Path, metric: str | None) -> str:
    """The metric that is named, or the preferred or only one; raises DataError listing them otherwise."""
    found = list(sample.scores)
    chosen = next((name for name in (metric, *PREFERRED_METRICS) if name in found), None)
    if chosen is None and len(found) > 1:
        raise DataError(f"{path}: several metrics, and none of them is chosen. Add --metric, of {', '.join(found)}.")
    return chosen or found[0]


def _record(sample: _Sample, *, metric: str, scorer: str) -> ExampleRecord:
    """The record of one sample; raises DataError where its score is not one number in [0, 1]."""
    value = sample.scores.get(metric)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(
            f"{sample.where}: metric {metric} is {str(value)[:40]}, not one number from 0 to 1 an example. "
            f"Choose another --metric; metrics here: {', '.join(sample.scores)}."
        )
    reading = _read_choice(sample, metric=metric) if len(sample.requests) > 1 else _read_single(sample)
    requested = json.dumps([sample.prompt_hash, sample.requests], sort_keys=True)
    try:
        return ExampleRecord(
            id=f"{sample.doc_id}-{sample.doc_hash[:DOC_HASH_DIGITS]}",
            prompt_sha256=hashlib.sha256(requested.encode()).hexdigest(),
            scorer=scorer,
            value=float(value),
            weight=1.0,
            **asdict(reading),
        )
    except ValueError as error:
        raise DataError(f"{sample.where}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What was asked and said, in words; the fields are those of a record."""

    prompt: str
    target: str
    answer: str | None
    candidate_nats: tuple[float, ...] = ()
    is_parsed: bool = True


def _read_single(sample: _Sample) -> _Reading:
    """One request: text generated under settings, or the log-likelihood of a given text, where nothing is said."""
    request = sample.requests[0]
    answer = _text(sample.responses[0]) if isinstance(request[-1], dict) else None
    return _Reading(prompt=_text(request[0]), target=sample.target, answer=answer, is_parsed=answer != NOT_PARSED)


def _read_choice(sample: _Sample, *, metric: str) -> _Reading:
    """One request for each option, and for acc_mutual_info another half of them without the context.

    Options differ in the continuation or, if that is the same for all, in the context, as in a Winograd schema.
    """
    likelihoods = _log_likelihoods(sample)
    num_options = len(likelihoods) // (2 if "acc_mutual_info" in sample.scores else 1)
    contexts = [_text(request[0]) for request in sample.requests[:num_options]]
    options = [_text(request[-1]).strip() for request in sample.requests[:num_options]]
    prompt, is_in_context = contexts[0], len(set(options)) == 1
    if is_in_context:
        prompt = _common_words(contexts)
        options = [context.removeprefix(prompt) for context in contexts]
    chosen = _chosen(options, likelihoods=likelihoods, metric=metric)
    index = int(sample.target) if sample.target.isdecimal() and int(sample.target) < num_options else None
    is_contradicted = index is not None and (chosen == index) != sample.scores[metric]
    # Lengths of options are those of the task's own texts, which a context does not delimit.
    is_unknown = is_contradicted or (is_in_context and metric in ("acc_norm", "acc_bytes"))
    return _Reading(
        prompt=prompt,
        target=sample.target if index is None else options[index],
        answer=None if is_unknown else options[chosen],
        candidate_nats=tuple(-likelihood for likelihood in likelihoods[:num_options]),
    )


def _common_words(texts: Sequence[str]) -> str:
    """Words that all texts begin with."""
    first, last = min(texts), max(texts)
    num_common = next((k for k, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first))
    return first[: first.rfind(" ", 0, num_common) + 1]


def _chosen(options: Sequence[str], *, likelihoods: Sequence[float], metric: str) -> int:
    """Index of the option that the metric takes for the answer; of equals the first, as the harness does."""
    match metric:
        case "acc_norm":
            preferences = [likelihoods[k] / max(len(option), 1) for k, option in enumerate(options)]
        case "acc_bytes":
            preferences = [likelihoods[k] / max(len(option.encode()), 1) for k, option in enumerate(options)]
        case "acc_mutual_info":
            preferences = [likelihoods[k] - likelihoods[k + len(options)] for k in range(len(options))]
        case _:
            preferences = list(likelihoods[: len(options)])
    return preferences.index(max(preferences))


def _log_likelihoods(sample: _Sample) -> list[float]:
    """Of each request, in nats."""
    try:
        return [float(response[0]) for response in sample.responses]
    except (TypeError, ValueError, IndexError, KeyError):
        raise DataError(
            f"{sample.where}: filtered_resps is {str(sample.responses)[:40]}, not a log-likelihood for each of "
            f"{len(sample.responses)} options. {HOW_TO_WRITE}."
        ) from None


def _text(value: object) -> str:
    """Text as it is, also out of a list of one; anything else as JSON."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else json.dumps(value)

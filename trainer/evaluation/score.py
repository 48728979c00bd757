"""From examples to per-example records, on all ranks. Shapes: B sequences, T tokens, V vocabulary.

Batches are canonical: sorted by length and cut the same way whatever the number of
ranks, then dealt whole. Every rank runs the same number of forward passes, which
ZeRO-3 needs, by repeating the last batch where it has none; so 1, 2 and 4 ranks
give the same records.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.data.collate import Batch, Item, collate
from trainer.data.tokenize import PromptEncoder, TokenizedExample, tail
from trainer.engine.protocol import Scorer
from trainer.evaluation.drift import Divergence, KeptTokens, divergence, keep_tokens
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.likelihood import dealt, score_candidates
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.scorers import score_answer
from trainer.evaluation.suite import EvaluationTask
from trainer.loss import target_nll


@dataclass(frozen=True, slots=True)
class _Result:
    """What the model made of one sequence."""

    nats: float = 0.0
    num_tokens: int = 0
    answer: str = ""
    candidate_nats: tuple[float, ...] = ()
    kept: KeptTokens | None = None
    divergence: Divergence | None = None


@dataclass(frozen=True, slots=True)
class _Sequence:
    number: int
    """Of its example."""

    prompt_ids: tuple[int, ...]
    candidate_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.candidate_ids)


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of a task."""

    records: list[ExampleRecord]
    kept: dict[str, KeptTokens]
    """By example id, of those that were to be kept."""


@dataclass(frozen=True, slots=True)
class DriftRequest:
    """What is to be kept of the base, or compared with it (kind text); both by example id."""

    keep: frozenset[str] = frozenset()
    base: Mapping[str, KeptTokens] = field(default_factory=dict)


def score_task(
    engine: Scorer,
    task: EvaluationTask,
    examples: Sequence[EvaluationExample],
    *,
    encoder: PromptEncoder,
    examples_per_batch: int,
    check_stop: Callable[[], None],
    drift: DriftRequest = DriftRequest(),
) -> Scored:
    """Collective: records of all examples, on every rank.

    Args:
        check_stop: called on every rank before each batch; raises on all of them to end the measurement.
    """
    if task.spec.kind == "choice":
        return Scored(_chosen(engine, task, examples, encoder, examples_per_batch, check_stop), {})
    sequences = [
        _Sequence(number, example.prompt_ids, example.candidate_ids[0] if example.candidate_ids else ())
        for number, example in enumerate(examples)
    ]
    sequences.sort(
        key=lambda sequence: (-sequence.length, sequence.number)
    )  # longest first: memory trouble shows at once
    batches = [sequences[start : start + examples_per_batch] for start in range(0, len(sequences), examples_per_batch)]

    def of_batch(batch: Sequence[_Sequence]) -> dict[int, _Result]:
        with torch.no_grad():
            results = _run(engine, batch, task, examples, encoder, drift)
        return {sequence.number: result for sequence, result in zip(batch, results, strict=True)}

    merged = dealt(engine.world, batches, of_batch, check_stop)
    records = [_record(task, example, merged[number]) for number, example in enumerate(examples)]
    kept = {examples[number].example_id: result.kept for number, result in merged.items() if result.kept}
    return Scored(records, kept)


def _chosen(
    engine: Scorer,
    task: EvaluationTask,
    examples: Sequence[EvaluationExample],
    encoder: PromptEncoder,
    examples_per_batch: int,
    check_stop: Callable[[], None],
) -> list[ExampleRecord]:
    """Which candidate the model holds for the most likely one."""
    likelihoods = score_candidates(
        engine,
        examples,
        pad_token_id=encoder.pad_token_id,
        examples_per_batch=examples_per_batch,
        check_stop=check_stop,
    )
    return [
        _record(task, example, _Result(candidate_nats=tuple(one.nats for one in candidates)))
        for example, candidates in zip(examples, likelihoods, strict=True)
    ]


def _run(
    engine: Scorer,
    batch: Sequence[_Sequence],
    task: EvaluationTask,
    examples: Sequence[EvaluationExample],
    encoder: PromptEncoder,
    drift: DriftRequest,
) -> list[_Result]:
    if task.labels:
        return _classify(engine, batch, [examples[sequence.number].target for sequence in batch], encoder)
    if task.spec.kind == "generate":
        return _generate(engine, batch, task, encoder)
    return _nll(engine, batch, [examples[sequence.number].example_id for sequence in batch], encoder, drift)


def _classify(
    engine: Scorer, batch: Sequence[_Sequence], targets: Sequence[str], encoder: PromptEncoder
) -> list[_Result]:
    """The head's label of each text, and the nats of the right one."""
    tokenized = [
        TokenizedExample(sequence.prompt_ids, label=encoder.labels.index(target))
        for sequence, target in zip(batch, targets, strict=True)
    ]
    padded = _padded(tokenized, encoder).to(engine.world.device)
    logits_BTV = engine.forward(padded)
    nll_BT, _ = target_nll(logits_BTV, padded.targets_BT)
    labels = [encoder.labels[index] for index in logits_BTV[:, 0].argmax(dim=-1).tolist()]
    return [_Result(nats, 1, label) for nats, label in zip(nll_BT.sum(dim=1).tolist(), labels, strict=True)]


def _nll(
    engine: Scorer, batch: Sequence[_Sequence], names: Sequence[str], encoder: PromptEncoder, drift: DriftRequest
) -> list[_Result]:
    """Summed nats and tokens of each sequence's candidate; what is kept of it, or how far it has moved."""
    tokenized = [tail(sequence.prompt_ids, sequence.candidate_ids) for sequence in batch]
    padded = _padded(tokenized, encoder).to(engine.world.device)
    logits_BTV = engine.forward(padded)
    nll_BT, supervised_BT = target_nll(logits_BTV, padded.targets_BT)
    nats_B, tokens_B = nll_BT.sum(dim=1).tolist(), supervised_BT.sum(dim=1).tolist()
    results = []
    for row, name in enumerate(names):
        logits_NV = logits_BTV[row, supervised_BT[row]]
        kept = keep_tokens(logits_NV) if name in drift.keep else None
        moved = divergence(logits_NV, drift.base[name]) if name in drift.base else None
        results.append(_Result(nats_B[row], tokens_B[row], kept=kept, divergence=moved))
    return results


def _padded(examples: Sequence[TokenizedExample], encoder: PromptEncoder) -> Batch:
    return collate([[Item(example)] for example in examples], pad_token_id=encoder.pad_token_id)


def _generate(
    engine: Scorer, batch: Sequence[_Sequence], task: EvaluationTask, encoder: PromptEncoder
) -> list[_Result]:
    """Greedy answers, trimmed."""
    width = max(len(sequence.prompt_ids) for sequence in batch)
    input_ids_BT = torch.full((len(batch), width), encoder.pad_token_id, dtype=torch.long)
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    for row, sequence in enumerate(batch):
        start = width - len(sequence.prompt_ids)
        input_ids_BT[row, start:] = torch.tensor(sequence.prompt_ids)
        attention_mask_BT[row, start:] = 1
    new_ids_BT: Tensor = engine.generate(
        input_ids_BT.to(engine.world.device),
        attention_mask_BT.to(engine.world.device),
        max_new_tokens=task.spec.max_new_tokens,
    )
    return [_Result(answer=encoder.decode(ids)) for ids in new_ids_BT.tolist()]


def _record(
    task: EvaluationTask,
    example: EvaluationExample,
    result: _Result,
) -> ExampleRecord:
    value, weight, answer, beside = 0.0, 1.0, None, dict[str, Any]()
    match task.spec.kind:
        case "text":
            value, weight = result.nats, float(result.num_tokens)
            beside["num_bytes"] = len(example.candidates[0].encode())
            if result.divergence is not None:
                beside["kl_nats"] = result.divergence.kl_nats
                beside["num_agreeing_tokens"] = result.divergence.num_agreeing_tokens
        case "choice":
            nats = result.candidate_nats
            answer = _most_likely(example.candidates, nats, per_byte=task.spec.length_normalised)
            value, beside["candidate_nats"] = float(answer == example.target), nats
        case "classify":
            answer = result.answer
            value = float(answer == example.target)
        case "generate":
            answer, spec = result.answer, task.spec
            scored = score_answer(
                answer, example.target.strip(), scorer=spec.scorer, answer_pattern=spec.answer_pattern
            )
            value, beside["is_parsed"] = scored.value, scored.is_parsed
    return ExampleRecord(
        id=example.example_id,
        prompt_sha256=example.prompt_sha256,
        scorer=task.scorer,
        value=value,
        weight=weight,
        prompt=example.prompt,
        target=example.target,
        answer=answer,
        cluster=example.cluster,
        **beside,
    )


def _most_likely(candidates: Sequence[str], nats: Sequence[float], *, per_byte: bool) -> str:
    """The first of the most likely candidates."""
    lengths = [len(text.encode()) if per_byte else 1 for text in candidates]
    return min(zip(candidates, nats, lengths, strict=True), key=lambda one: one[1] / one[2])[0]

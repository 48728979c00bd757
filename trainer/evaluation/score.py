"""From examples to per-example records, on all ranks. Shapes: B sequences, T tokens, V vocabulary.

Batches are canonical: sorted by length and cut the same way whatever the number of
ranks, then dealt whole. Every rank runs the same number of forward passes, which
ZeRO-3 needs, by repeating the last batch where it has none; so 1, 2 and 4 ranks
give the same records.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.collate import Batch, Item, collate
from trainer.data.tokenize import PromptEncoder, TokenizedExample, tail
from trainer.engine.protocol import Engine
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.scorers import score_answer
from trainer.evaluation.suite import EvaluationTask
from trainer.loss import target_nll

Key = tuple[int, int]
"""(number of the example, number of the candidate)."""


@dataclass(frozen=True, slots=True)
class _Result:
    """What the model made of one sequence."""

    nats: float = 0.0
    num_tokens: int = 0
    answer: str = ""


@dataclass(frozen=True, slots=True)
class _Sequence:
    key: Key
    prompt_ids: tuple[int, ...]
    candidate_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.candidate_ids)


def score_task(
    engine: Engine,
    task: EvaluationTask,
    examples: Sequence[EvaluationExample],
    *,
    encoder: PromptEncoder,
    examples_per_batch: int,
    check_stop: Callable[[], None],
) -> list[ExampleRecord]:
    """Collective: records of all examples, on every rank.

    Args:
        check_stop: called on every rank before each batch; raises on all of them to end the measurement.
    """
    sequences = [
        _Sequence((number, candidate), example.prompt_ids, ids)
        for number, example in enumerate(examples)
        for candidate, ids in enumerate(example.candidate_ids or ((),))
    ]
    sequences.sort(key=lambda sequence: (-sequence.length, sequence.key))  # longest first: memory trouble shows at once
    batches = [sequences[start : start + examples_per_batch] for start in range(0, len(sequences), examples_per_batch)]
    world = engine.world
    mine: dict[Key, _Result] = {}
    for start in range(0, len(batches), world.size):
        check_stop()
        number = start + world.rank
        batch = batches[min(number, len(batches) - 1)]
        with torch.no_grad():
            results = _run(engine, batch, task, examples, encoder)
        if number < len(batches):
            mine |= {sequence.key: result for sequence, result in zip(batch, results, strict=True)}
    merged = {key: result for part in world.gather_objects(mine) for key, result in part.items()}
    return [_record(task, example, number, merged) for number, example in enumerate(examples)]


def _run(
    engine: Engine,
    batch: Sequence[_Sequence],
    task: EvaluationTask,
    examples: Sequence[EvaluationExample],
    encoder: PromptEncoder,
) -> list[_Result]:
    if task.labels:
        return _classify(engine, batch, [examples[sequence.key[0]].target for sequence in batch], encoder)
    return _generate(engine, batch, task, encoder) if task.spec.kind == "generate" else _nll(engine, batch, encoder)


def _classify(
    engine: Engine, batch: Sequence[_Sequence], targets: Sequence[str], encoder: PromptEncoder
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


def _nll(engine: Engine, batch: Sequence[_Sequence], encoder: PromptEncoder) -> list[_Result]:
    """Summed nats and tokens of each sequence's candidate."""
    tokenized = [tail(sequence.prompt_ids, sequence.candidate_ids) for sequence in batch]
    padded = _padded(tokenized, encoder).to(engine.world.device)
    nll_BT, supervised_BT = target_nll(engine.forward(padded), padded.targets_BT)
    nats_B, tokens_B = nll_BT.sum(dim=1).tolist(), supervised_BT.sum(dim=1).tolist()
    return [_Result(nats, tokens) for nats, tokens in zip(nats_B, tokens_B, strict=True)]


def _padded(examples: Sequence[TokenizedExample], encoder: PromptEncoder) -> Batch:
    return collate([[Item(example)] for example in examples], pad_token_id=encoder.pad_token_id)


def _generate(
    engine: Engine, batch: Sequence[_Sequence], task: EvaluationTask, encoder: PromptEncoder
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
    number: int,
    results: dict[Key, _Result],
) -> ExampleRecord:
    value, weight, answer = 0.0, 1.0, None
    match task.spec.kind:
        case "text":
            value, weight = results[number, 0].nats, float(results[number, 0].num_tokens)
        case "choice":
            answer = _most_likely(task, example, number, results)
            value = float(answer == example.target)
        case "classify":
            answer = results[number, 0].answer
            value = float(answer == example.target)
        case "generate":
            answer = results[number, 0].answer
            value = score_answer(answer, example.target.strip(), scorer=task.spec.scorer)
    return ExampleRecord(
        id=example.example_id,
        prompt_sha256=example.prompt_sha256,
        scorer=task.scorer,
        value=value,
        weight=weight,
        prompt=example.prompt,
        target=example.target,
        answer=answer,
    )


def _most_likely(task: EvaluationTask, example: EvaluationExample, number: int, results: dict[Key, _Result]) -> str:
    def nats(candidate: int) -> float:
        total = results[number, candidate].nats
        return total / len(example.candidates[candidate].encode()) if task.spec.length_normalised else total

    return example.candidates[min(range(len(example.candidates)), key=nats)]

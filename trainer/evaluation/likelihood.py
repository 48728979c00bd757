"""Log-likelihoods of candidates after their prompts, on all ranks. Shapes: B sequences, T tokens, V vocabulary.

A prompt is computed once for all its candidates, and a header that most prompts begin with once for all of them,
wherever the model can (Scorer.cache_obstacle says why not); otherwise each candidate is a sequence of its own.
Batches are canonical: cut the same way whatever the number of ranks, then dealt whole. Every rank runs the same number
of forward passes in the same order, which ZeRO-3 needs, by repeating the last batch where it has none; so 1, 2 and 4
ranks give the same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from trainer.data.collate import Item, collate
from trainer.data.tokenize import tail
from trainer.distributed import World
from trainer.engine.forward import CachedRows, expanded_cache
from trainer.engine.protocol import Scorer
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.shared_rows import Key, Row, RowBatch, batches_of_rows, row_batch
from trainer.loss import target_nll

Batch = TypeVar("Batch")
AnyKey = TypeVar("AnyKey")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model holds a text."""

    nats: float
    """Minus the logarithm of its probability, summed over the tokens that something predicts."""

    num_tokens: int
    """So many. Nothing predicts the first token of a text without a prompt."""


def score_candidates(
    engine: Scorer,
    examples: Sequence[EvaluationExample],
    *,
    pad_token_id: int,
    examples_per_batch: int,
    check_stop: Callable[[], None],
) -> list[list[Likelihood]]:
    """Collective: the likelihood of each candidate of each example, on every rank.

    Args:
        examples_per_batch: bounds a batch by the tokens of so many of the longest sequences.
        check_stop: called on every rank before each batch; raises on all of them to end the measurement.
    """
    if not any(example.candidate_ids for example in examples):
        return [[] for _ in examples]
    if engine.cache_obstacle is None:
        header_ids, batches = batches_of_rows(examples, examples_per_batch=examples_per_batch)
        header = _header_cache(engine, header_ids) if header_ids else None

        def of_rows(rows: list[Row]) -> dict[Key, Likelihood]:
            return _score_rows(engine, row_batch(rows, examples, pad_token_id=pad_token_id), header)

        scored = dealt(engine.world, batches, of_rows, check_stop)
    else:
        keys = _batches_of_keys(examples, examples_per_batch=examples_per_batch)

        def of_keys(batch: list[Key]) -> dict[Key, Likelihood]:
            return _score_whole(engine, batch, examples, pad_token_id=pad_token_id)

        scored = dealt(engine.world, keys, of_keys, check_stop)
    return [
        [scored[number, candidate] for candidate in range(len(example.candidate_ids))]
        for number, example in enumerate(examples)
    ]


def dealt(
    world: World,
    batches: Sequence[Batch],
    score: Callable[[Batch], dict[AnyKey, Result]],
    check_stop: Callable[[], None],
) -> dict[AnyKey, Result]:
    """Collective: what all ranks together made of the batches. Every rank scores as many."""
    mine: dict[AnyKey, Result] = {}
    for start in range(0, len(batches), world.size):
        check_stop()
        number = start + world.rank
        scored = score(batches[min(number, len(batches) - 1)])
        if number < len(batches):
            mine |= scored
    return {key: result for part in world.gather_objects(mine) for key, result in part.items()}


def _header_cache(engine: Scorer, header_ids: tuple[int, ...]) -> DynamicCache:
    """Keys and values of a header, on every rank."""
    cache = DynamicCache()
    ids_1T = torch.tensor([header_ids])
    header = CachedRows(ids_1T, torch.arange(len(header_ids)).unsqueeze(0), segments_BT=None, num_logits=1)
    engine.forward_cached(header.to(engine.world.device), cache)
    return cache


def _score_rows(engine: Scorer, batch: RowBatch, header: DynamicCache | None) -> dict[Key, Likelihood]:
    """Candidates of a batch of rows, with their prompts."""
    cache = None
    if header is not None and batch.has_header:
        cache = expanded_cache(header, num_rows=len(batch.rows.input_ids_BT))
    device = engine.world.device
    logits_BKV = engine.forward_cached(batch.rows.to(device), cache)
    logits_NV = logits_BKV[batch.rows_N.to(device), batch.columns_N.to(device)].float()
    nll_N = F.cross_entropy(logits_NV, batch.targets_N.to(device), reduction="none").cpu()
    nats = [float(part_N.double().sum()) for part_N in nll_N.split(list(batch.num_scored_tokens))]
    return {
        key: Likelihood(one, count) for key, one, count in zip(batch.keys, nats, batch.num_scored_tokens, strict=True)
    }


def _batches_of_keys(examples: Sequence[EvaluationExample], *, examples_per_batch: int) -> list[list[Key]]:
    """Candidates with their whole prompts, the longest first: a batch has the tokens of so many of the longest."""
    lengths = {
        (number, candidate): len(example.prompt_ids) + len(ids)
        for number, example in enumerate(examples)
        for candidate, ids in enumerate(example.candidate_ids)
    }
    keys = sorted(lengths, key=lambda key: (-lengths[key], key))
    most, batches = examples_per_batch * lengths[keys[0]], []
    while keys:
        size = max(1, most // max(1, lengths[keys[0]]))
        batches.append(keys[:size])
        keys = keys[size:]
    return batches


def _score_whole(
    engine: Scorer, keys: Sequence[Key], examples: Sequence[EvaluationExample], *, pad_token_id: int
) -> dict[Key, Likelihood]:
    """Candidates, each as a sequence of its own."""
    sequences = [tail(examples[number].prompt_ids, examples[number].candidate_ids[one]) for number, one in keys]
    padded = collate([[Item(sequence)] for sequence in sequences], pad_token_id=pad_token_id).to(engine.world.device)
    with torch.no_grad():
        nll_BT, supervised_BT = target_nll(engine.forward(padded), padded.targets_BT)
    nats_B, tokens_B = nll_BT.double().sum(dim=1).tolist(), supervised_BT.sum(dim=1).tolist()
    return {key: Likelihood(nats, tokens) for key, nats, tokens in zip(keys, nats_B, tokens_B, strict=True)}

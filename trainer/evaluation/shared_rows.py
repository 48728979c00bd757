"""Prompts with all their candidates as rows of tokens: what is computed once, and where each token's odds are read.

A row is a prompt and, one after another, its candidates, each of which goes on from the prompt and sees no other one
(the tree attention of Miao et al. 2024, arXiv 2305.09781). Rows end in the last column, so that logits are
wanted of a few last columns only. A header that most prompts begin with is left out: its keys and values come from a
cache. Which rows make up a batch depends on the examples alone, never on the number of ranks.

Shapes: B rows, T columns, K last columns with logits, N scored tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.engine.forward import CachedRows
from trainer.evaluation.examples import EvaluationExample

Key = tuple[int, int]
"""(number of the example, number of the candidate)."""

SHORTEST_HEADER = 16
"""Tokens. A shorter one costs more, as a pass of its own and in copies of its keys, than it saves."""


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt after its header, and candidates of it."""

    example: int
    candidates: tuple[int, ...]
    num_header_tokens: int
    num_tokens: int
    """Of the row: the prompt's, and each candidate's but the last one, which nothing is read from."""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows as tensors, and where the odds of each scored token stand in their logits."""

    rows: CachedRows
    has_header: bool
    """Whether they go on from the header."""

    keys: tuple[Key, ...]
    num_scored_tokens: tuple[int, ...]
    """Of each key; their tokens stand one key after another below."""

    rows_N: Tensor
    columns_N: Tensor
    """Among the K last."""

    targets_N: Tensor


def shared_header(examples: Sequence[EvaluationExample]) -> tuple[int, ...]:
    """The prefix of prompts that saves most tokens among those of the middle prompt; empty where none is long enough.

    Any prefix of more than half of the prompts is one of the middle prompt in their order. A prompt keeps a token of
    its own, from which its candidates go on.
    """
    prompts = sorted(example.prompt_ids for example in examples)
    if len(prompts) < 2:
        return ()
    middle = prompts[len(prompts) // 2]
    shared = (min(_num_common(middle, prompt), len(prompt) - 1) for prompt in prompts)
    lengths = sorted((length for length in shared if length >= SHORTEST_HEADER), reverse=True)
    # The number-th longest, from 0, is shared by number + 1 prompts, and computed once instead.
    saved = [(number * length, length) for number, length in enumerate(lengths)]
    most, length = max(saved, default=(0, 0))
    return middle[:length] if most else ()


def batches_of_rows(
    examples: Sequence[EvaluationExample], *, examples_per_batch: int
) -> tuple[tuple[int, ...], list[list[Row]]]:
    """The header, and rows with it, then without it, in batches, the longest first.

    Let L be the tokens of the longest prompt with a candidate. A batch of B rows of T columns that see S tokens each,
    cached ones among them, obeys B S max(T, L) <= examples_per_batch L^2: it computes and keeps no more tokens, and
    compares no more pairs of them, than `examples_per_batch` sequences of L tokens.
    """
    longest = max(len(one.prompt_ids) + len(ids) for one in examples for ids in one.candidate_ids)
    most = examples_per_batch * longest**2
    header_ids = shared_header(examples)
    batches = []
    for is_headed in (True, False):
        rows = [
            row
            for number, example in enumerate(examples)
            if has_header(example.prompt_ids, header_ids) == is_headed
            for row in _rows(number, example, len(header_ids) * is_headed, longest=longest, most=most)
        ]
        rows.sort(key=lambda row: (-row.num_tokens, row.example, row.candidates))
        while rows:
            size = max(1, most // _cost(rows[0].num_header_tokens, rows[0].num_tokens, longest=longest))
            batches.append(rows[:size])
            rows = rows[size:]
    return header_ids, batches


def has_header(prompt_ids: tuple[int, ...], header_ids: tuple[int, ...]) -> bool:
    """Whether a prompt begins with a header that is not empty, and goes on."""
    return 0 < len(header_ids) < len(prompt_ids) and prompt_ids[: len(header_ids)] == header_ids


def row_batch(rows: Sequence[Row], examples: Sequence[EvaluationExample], *, pad_token_id: int) -> RowBatch:
    """Rows of one header, or of none, as tensors."""
    num_header_tokens = rows[0].num_header_tokens
    width = max(1, *(row.num_tokens for row in rows))
    input_ids_BT = torch.full((len(rows), width), pad_token_id)
    position_ids_BT, segments_BT = torch.zeros_like(input_ids_BT), torch.full_like(input_ids_BT, -1)
    keys, counts, places, targets = [], [], list[tuple[int, int]](), list[int]()
    for number, row in enumerate(rows):
        example = examples[row.example]
        prompt_ids = example.prompt_ids[num_header_tokens:]
        start = column = width - row.num_tokens
        pieces = [(0, num_header_tokens, prompt_ids)]
        column += len(prompt_ids)
        for segment, candidate in enumerate(row.candidates, start=1):
            ids = example.candidate_ids[candidate]
            pieces.append((segment, len(example.prompt_ids), ids[:-1]))
            # The first token is predicted at the end of the prompt, if there is one; the others at the one before.
            scored = [(start + len(prompt_ids) - 1, ids[0])] if example.prompt_ids and ids else []
            scored += [(column + place, following) for place, following in enumerate(ids[1:])]
            keys.append((row.example, candidate))
            counts.append(len(scored))
            places += [(number, one) for one, _ in scored]
            targets += [target for _, target in scored]
            column += len(ids[:-1])
        for segment, first_position, ids in pieces:
            end = start + len(ids)
            input_ids_BT[number, start:end] = torch.tensor(ids, dtype=torch.long)
            position_ids_BT[number, start:end] = torch.arange(first_position, first_position + len(ids))
            segments_BT[number, start:end] = segment
            start = end
    first = min((column for _, column in places), default=width - 1)
    return RowBatch(
        CachedRows(input_ids_BT, position_ids_BT, segments_BT, num_logits=width - first),
        num_header_tokens > 0,
        tuple(keys),
        tuple(counts),
        rows_N=torch.tensor([row for row, _ in places], dtype=torch.long),
        columns_N=torch.tensor([column - first for _, column in places], dtype=torch.long),
        targets_N=torch.tensor(targets, dtype=torch.long),
    )


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _cost(num_header_tokens: int, num_tokens: int, *, longest: int) -> int:
    return (num_header_tokens + max(1, num_tokens)) * max(num_tokens, longest)


def _rows(number: int, example: EvaluationExample, num_header_tokens: int, *, longest: int, most: int) -> Iterator[Row]:
    """Rows of one example: one, unless its candidates are too many for a batch."""
    num_prompt_tokens = len(example.prompt_ids) - num_header_tokens
    candidates, num_tokens = list[int](), num_prompt_tokens
    for candidate, ids in enumerate(example.candidate_ids):
        num_fed = max(0, len(ids) - 1)
        if candidates and _cost(num_header_tokens, num_tokens + num_fed, longest=longest) > most:
            yield Row(number, tuple(candidates), num_header_tokens, num_tokens)
            candidates, num_tokens = [], num_prompt_tokens
        candidates.append(candidate)
        num_tokens += num_fed
    if candidates:
        yield Row(number, tuple(candidates), num_header_tokens, num_tokens)

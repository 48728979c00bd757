"""A tiny model of any architecture on a simulated rank, and the likelihoods of single sequences to compare with.

Shapes: B rows, T tokens, K last positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from trainer.data.collate import Batch
from trainer.engine.forward import CachedRows, cached_logits_of, logits_of
from trainer.evaluation.examples import EvaluationExample
from trainer.evaluation.likelihood import Likelihood, score_candidates
from trainer.evaluation.shared_rows import SHORTEST_HEADER

V = 64
CPU = torch.device("cpu")

Ids = tuple[int, ...]


class Waiting(Exception):
    """A simulated rank has handed over its part and cannot go on before the others have."""


@dataclass
class SimulatedWorld:
    """One of several ranks that run after another and share a table of parts."""

    rank: int = 0
    size: int = 1
    parts: dict[int, Any] = field(default_factory=dict)
    device: torch.device = CPU

    def gather_objects(self, value: Any) -> list[Any]:
        self.parts[self.rank] = value
        if len(self.parts) < self.size:
            raise Waiting
        return [self.parts[rank] for rank in range(self.size)]


@dataclass
class ModelEngine:
    """A model on one rank; writes down what is asked of it, and may change that before the model sees it."""

    model: PreTrainedModel
    attention: str = "sdpa"
    cache_obstacle: str | None = None
    world: SimulatedWorld = field(default_factory=SimulatedWorld)
    change: Callable[[CachedRows, DynamicCache | None], CachedRows] = lambda rows, _: rows
    passes: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    num_tokens: int = 0

    def forward(self, batch: Batch) -> Tensor:
        self.passes.append(("whole", tuple(batch.input_ids_BT.shape)))
        return logits_of(self.model, batch, objective="causal_lm", attention=self.attention)

    def forward_cached(self, rows: CachedRows, cache: DynamicCache | None = None) -> Tensor:
        rows = self.change(rows, cache)
        kind = "header" if rows.segments_BT is None else "rows" if cache is None else "rows after header"
        self.passes.append((kind, tuple(rows.input_ids_BT.shape)))
        self.num_tokens += rows.input_ids_BT.numel() if rows.segments_BT is None else int((rows.segments_BT >= 0).sum())
        with torch.no_grad():
            return cached_logits_of(self.model, rows, cache, attention=self.attention)


@cache
def tiny(model_type: str, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A model with random weights, large enough for clear preferences."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    size |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3}
    match model_type:
        case "gpt2":
            size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}
        case "opt":
            size |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}
        case "mistral" | "phi3":
            size |= {"sliding_window": None}  # type: ignore[dict-item]
    config = AutoConfig.for_model(model_type, vocab_size=V, pad_token_id=0, bos_token_id=1, eos_token_id=2, **size)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def example_of(prompt_ids: Sequence[int], *candidate_ids: Sequence[int]) -> EvaluationExample:
    return EvaluationExample(
        example_id="id",
        prompt="",
        target="",
        candidates=("",) * len(candidate_ids),
        prompt_ids=tuple(prompt_ids),
        candidate_ids=tuple(map(tuple, candidate_ids)),
    )


HEADER = tuple(range(3, 3 + SHORTEST_HEADER))
EXAMPLES = (
    example_of((*HEADER, 40, 41, 42), (50,), (51,), (52,)),  # one token each: nothing beyond the prompt is computed
    example_of((*HEADER, 43), (50, 51, 52, 53), (54,), (55, 56)),  # different lengths
    example_of((*HEADER, 44, 45), (50, 51, 52), (50, 51, 52), (60, 61)),  # twice the same
    example_of(HEADER, (50, 51), (52, 53)),  # the header and nothing else
    example_of(range(30, 50), (50, 51, 52), (53, 54, 55)),  # as long, but with another beginning
    example_of((), (50, 51, 52, 53, 54), (55, 56)),  # texts from their start
    example_of((*HEADER, 46, 47, 48, 49), (50, 51, 52, 53, 54, 55)),
)


def scored(
    engine: Any,
    examples: Sequence[EvaluationExample] = EXAMPLES,
    *,
    examples_per_batch: int = 2,
    check_stop: Callable[[], None] = lambda: None,
) -> list[list[Likelihood]]:
    return score_candidates(
        engine, examples, pad_token_id=0, examples_per_batch=examples_per_batch, check_stop=check_stop
    )


def alone(model: PreTrainedModel, prompt_ids: Ids, candidate_ids: Ids) -> Likelihood:
    """One sequence at a time, without padding or cache: position t - 1 predicts t."""
    ids = [*prompt_ids, *candidate_ids]
    with torch.no_grad():
        log_p_TV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    places = range(max(1, len(prompt_ids)), len(ids))
    return Likelihood(-sum(log_p_TV[t - 1, ids[t]].item() for t in places), len(places))


def all_alone(model: PreTrainedModel, examples: Sequence[EvaluationExample] = EXAMPLES) -> list[list[Likelihood]]:
    return [[alone(model, one.prompt_ids, ids) for ids in one.candidate_ids] for one in examples]


def largest_difference(found: list[list[Likelihood]], wanted: list[list[Likelihood]]) -> float:
    """Of nats, relative to those wanted; the numbers of tokens must be equal."""
    assert [[one.num_tokens for one in row] for row in found] == [[one.num_tokens for one in row] for row in wanted]
    pairs = [
        (a.nats, b.nats) for row, other in zip(found, wanted, strict=True) for a, b in zip(row, other, strict=True)
    ]
    return max(abs(a - b) / max(abs(b), 1.0) for a, b in pairs)

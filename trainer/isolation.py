"""Whether examples that share a row see each other, tried on the model at hand before it trains.

Shapes: T tokens, V classes.
"""

import torch
from torch import Tensor

from trainer.config.errors import ConfigError
from trainer.config.plan import Plan
from trainer.data.collate import Batch, Item, collate
from trainer.data.tokenize import TokenizedExample
from trainer.engine.protocol import Engine
from trainer.evaluation.measure import untouched

NEIGHBOUR_TOKENS, TOKENS = 9, 11
LARGEST_LEAK = 1e-3
"""Change of an example's logits with its neighbour's words, over the largest logit. The shapes are the same, so that
what has no path has no effect but noise of the kernels."""

LARGEST_SHIFT = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}
"""Difference between packed and alone, over the largest logit: other shapes, so other rounding. Positions that do not
start again shift far more."""


def refuse_contamination(engine: Engine, plan: Plan, *, vocabulary: int, pad_token_id: int) -> None:
    """Collective: raise where packed rows would train wrongly; nothing of the model changes.

    Raises:
        ConfigError: the words of one example change the logits of the next one, or its place in the row does.
    """
    neighbours = [_example(start, NEIGHBOUR_TOKENS, vocabulary) for start in (5, 61)]
    example = _example(23, TOKENS, vocabulary)
    rows = [[Item(neighbour), Item(example)] for neighbour in neighbours]
    with untouched(engine), torch.no_grad():
        first_TV, second_TV = (_last(engine, collate([row], pad_token_id=pad_token_id, packed=True)) for row in rows)
        alone_TV = _last(engine, collate([[Item(example)]], pad_token_id=pad_token_id))
    largest = float(alone_TV.abs().max())
    leak = float((first_TV - second_TV).abs().max()) / largest
    shift = float((first_TV - alone_TV).abs().max()) / largest
    kind = plan.memory.model_type or "of this kind"
    if not leak <= LARGEST_LEAK:
        raise ConfigError(
            f"data.packing: true, but in a model {kind} with model.attention {plan.config.model.attention} an example "
            f"sees its neighbour in the row (its logits change by {leak:.1%}). Set data.packing=false."
        )
    if not shift <= LARGEST_SHIFT[plan.config.training.precision]:
        raise ConfigError(
            f"data.packing: true, but in a model {kind} an example's logits depend on its place in the row "
            f"(they change by {shift:.1%}). Set data.packing=false."
        )


def _example(start: int, length: int, vocabulary: int) -> TokenizedExample:
    """Any words will do."""
    return TokenizedExample([(start + 7 * number) % vocabulary for number in range(length)])


def _last(engine: Engine, batch: Batch) -> Tensor:
    """Logits of the last example of the only row."""
    logits_BTV = engine.forward(batch.to(engine.world.device))
    return logits_BTV[0, -TOKENS:].float()

"""One forward pass, the same call under both engines.

Shapes: B rows, T positions, S positions that can be seen (those of the cache, then T), K last positions, V classes.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from trainer.config.schema import Objective
from trainer.data.collate import Batch

MODEL_TYPES = frozenset(
    ("gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3")
)
"""Architectures whose forward takes a mask of which token sees which, positions, a cache and `logits_to_keep`, and
builds nothing else from the order of its input: tests/unit/test_likelihood.py shows it for each."""

ATTENTIONS = ("sdpa", "eager")
"""Implementations that take any mask; the others take none, or one of their own."""


@dataclass(frozen=True, slots=True)
class CachedRows:
    """Input of a forward pass: in each row a trunk, and branches that all go on from it."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    """Place of the token in its text, from 0, cached tokens counted."""

    segments_BT: Tensor | None
    """0 in the trunk, 1, 2, ... in the branches, -1 where there is no token. A token sees the cache, the trunk and its
    own branch up to itself. None: there are no branches and every place is a token."""

    num_logits: int
    """K: logits of so many last positions are wanted."""

    def to(self, device: torch.device) -> "CachedRows":
        """The same rows on a device."""
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device),
            position_ids_BT=self.position_ids_BT.to(device),
            segments_BT=None if self.segments_BT is None else self.segments_BT.to(device),
        )


def cache_obstacle(config: PreTrainedConfig, *, attention: str) -> str | None:
    """Why a model cannot take CachedRows, as half a sentence; None where it can.

    Args:
        config: of the model, as transformers reads it.
        attention: its implementation of attention.
    """
    if config.model_type not in MODEL_TYPES or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"a model {config.model_type} is not known to take masks of any shape with a cache"
    if attention not in ATTENTIONS:
        return f"model.attention {attention} does not take masks of any shape"
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
        return "not every layer of the model keeps all keys and values (sliding window)"
    return None


def expanded_cache(cache: DynamicCache, *, num_rows: int) -> DynamicCache:
    """A cache of equal rows out of one of a single row, which stays as it is."""
    return DynamicCache(
        [(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1)) for keys, values, _ in cache]
    )


def cached_logits_of(model: Any, rows: CachedRows, cache: DynamicCache | None, *, attention: str) -> Tensor:
    """logits_BKV of rows that go on from a cache, which takes up their keys and values; or of rows alone."""
    mask_B1TS = None
    if rows.segments_BT is not None:
        mask_B1TS = _visible(rows.segments_BT, 0 if cache is None else cache.get_seq_length()).unsqueeze(1)
        # Eager attention adds its mask to the scores; so does sdpa's kernel for the CPU, after turning it into numbers
        # in each layer anew.
        if attention == "eager" or mask_B1TS.device.type == "cpu":
            smallest = torch.finfo(torch.float32).min
            mask_B1TS = torch.zeros(mask_B1TS.shape, device=mask_B1TS.device).masked_fill(~mask_B1TS, smallest)
    return model(
        input_ids=rows.input_ids_BT,
        attention_mask=mask_B1TS,
        position_ids=rows.position_ids_BT,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=rows.num_logits,
    ).logits


def _visible(segments_BT: Tensor, num_cached: int) -> Tensor:
    """visible_BTS: True where a token sees another. Each sees itself: a softmax over nothing is not a number."""
    width = segments_BT.shape[1]
    seeing_BT1, seen_B1T = segments_BT.unsqueeze(2), segments_BT.unsqueeze(1)
    before_TT = torch.ones(width, width, dtype=torch.bool, device=segments_BT.device).tril()
    visible_BTT = before_TT & ((seen_B1T == 0) | (seen_B1T == seeing_BT1))
    return F.pad(visible_BTT, (num_cached, 0), value=True)


def logits_of(model: Any, batch: Batch, *, objective: Objective, attention: str) -> Tensor:
    """logits_BTV of a batch. A classifier answers once an example: T is 1, V the number of labels.

    Packed rows come without a mask: transformers sees by the positions that start again where an example begins, and
    lets no token see across (trainer/isolation.py proves it on the model at hand). Its flash attention wants all rows
    one after the other, and does no work across examples.
    """
    if batch.position_ids_BT is not None:
        ids_BT, places_BT = batch.input_ids_BT, batch.position_ids_BT
        if attention == "flash_attention_2":
            logits_1NV = model(input_ids=ids_BT.view(1, -1), position_ids=places_BT.view(1, -1), use_cache=False).logits
            return logits_1NV.view(*ids_BT.shape, -1)
        return model(input_ids=ids_BT, position_ids=places_BT, use_cache=False).logits
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    match objective:
        case "causal_lm":
            return model(**inputs, use_cache=False).logits
        case "classification":  # encoders keep no cache, and some refuse to be told so
            return model(**inputs).logits.unsqueeze(1)

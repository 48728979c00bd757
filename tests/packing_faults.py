"""Two ways to pack wrongly, planted by tests: the words of a neighbour are seen, or the positions count on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from trainer.data.collate import Batch
from trainer.engine.forward import logits_of


def seeing_across(model: Any, batch: Batch, **settings: Any) -> torch.Tensor:
    """Positions start again, but the mask says that the row is one text."""
    if batch.position_ids_BT is None:
        return logits_of(model, batch, **settings)
    ids_BT, places_BT = batch.input_ids_BT, batch.position_ids_BT
    mask_BT = torch.ones_like(ids_BT)
    return model(input_ids=ids_BT, position_ids=places_BT, attention_mask=mask_BT, use_cache=False).logits


def counting_on(model: Any, batch: Batch, **settings: Any) -> torch.Tensor:
    """Examples are kept apart, but an example's positions depend on its place in the row."""
    if batch.segments_BT is None:
        return logits_of(model, batch, **settings)
    segments_BT = batch.segments_BT
    width = segments_BT.shape[1]
    causal_TT = torch.ones(width, width, dtype=torch.bool).tril()
    mask_B1TT = ((segments_BT[:, :, None] == segments_BT[:, None, :]) & causal_TT)[:, None]
    places_BT = torch.arange(width).expand_as(segments_BT)
    return model(input_ids=batch.input_ids_BT, position_ids=places_BT, attention_mask=mask_B1TT, use_cache=False).logits


@contextmanager
def rows_see_across() -> Iterator[None]:
    """Both engines let examples see their neighbours."""
    with patch("trainer.engine.plain.logits_of", seeing_across), patch("trainer.engine.zero.logits_of", seeing_across):
        yield

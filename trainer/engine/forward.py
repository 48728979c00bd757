"""One forward pass, the same call under both engines. Shapes: B rows, T positions, V classes."""

from typing import Any

from torch import Tensor

from trainer.config.schema import Objective
from trainer.data.collate import Batch


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

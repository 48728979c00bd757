"""One forward pass, the same call under both engines. Shapes: B examples, T positions, V classes."""

from typing import Any

from torch import Tensor

from trainer.config.schema import Objective
from trainer.data.collate import Batch


def logits_of(model: Any, batch: Batch, *, objective: Objective) -> Tensor:
    """logits_BTV of a batch. A classifier answers once an example: T is 1, V the number of labels."""
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    match objective:
        case "causal_lm":
            return model(**inputs, use_cache=False).logits
        case "classification":  # encoders keep no cache, and some refuse to be told so
            return model(**inputs).logits.unsqueeze(1)

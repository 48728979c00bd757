"""Greedy decoding through transformers, the same call under both engines."""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig


def greedy_continuation(
    model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, max_new_tokens: int, synced_gpus: bool
) -> Tensor:
    """New ids after left-padded prompts.

    `synced_gpus` keeps every rank in the loop until the last one is done, which ZeRO-3 needs: a rank that
    stopped early would leave the others waiting for its part of the weights.
    """
    defaults = model.generation_config
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=defaults.eos_token_id,
        pad_token_id=defaults.pad_token_id if defaults.pad_token_id is not None else defaults.eos_token_id,
    )
    output_BT = model.generate(
        input_ids=input_ids_BT, attention_mask=attention_mask_BT, generation_config=config, synced_gpus=synced_gpus
    )
    return output_BT[:, input_ids_BT.shape[1] :]

"""How far a model's predictions have moved from the base's, on given text, without any label.

The base's most likely tokens are kept once, before training; each later measurement is compared with them. Shapes: N
measured tokens of one example, V vocabulary, K kept tokens.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.config.errors import DataError
from trainer.evaluation.examples import EvaluationExample

NUM_KEPT = 64
"""Most likely tokens kept at each place; the rest of the distribution counts as one outcome."""


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """The base's most likely tokens at each measured token of one example."""

    ids_NK: np.ndarray
    logprobs_NK: np.ndarray
    """float32, falling along K."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of one example."""

    kl_nats: float
    """Summed over its tokens."""

    num_agreeing_tokens: int
    """Tokens at which both models hold the same token for the most likely one."""


def keep_tokens(logits_NV: Tensor) -> KeptTokens:
    """What is kept of the base at N tokens."""
    logprobs_NV = logits_NV.float().log_softmax(dim=-1)
    logprobs_NK, ids_NK = logprobs_NV.topk(min(NUM_KEPT, logprobs_NV.shape[-1]), dim=-1)
    return KeptTokens(ids_NK.to(torch.int32).cpu().numpy(), logprobs_NK.cpu().numpy())


def divergence(logits_NV: Tensor, base: KeptTokens) -> Divergence:
    """KL(base || model) in nats, and agreement, at N tokens.

    Tokens that were not kept count as one outcome: KL on the coarser outcomes is a lower bound of the whole KL (data
    processing inequality; Cover and Thomas, Elements of Information Theory, 2006, section 2.8), and equal where the
    vocabulary has at most NUM_KEPT tokens. The same logits as the base's give exactly 0.
    """
    logprobs_NV = logits_NV.float().log_softmax(dim=-1)
    ids_NK = torch.from_numpy(base.ids_NK).to(logits_NV.device, torch.long)
    now_NK = logprobs_NV.gather(-1, ids_NK).cpu().double()
    base_NK = torch.from_numpy(base.logprobs_NK).double()
    kl = (base_NK.exp() * (base_NK - now_NK)).sum()
    if base_NK.shape[-1] < logits_NV.shape[-1]:
        rest_N, now_rest_N = _rest(base_NK), _rest(now_NK)
        kl = kl + (rest_N * (rest_N.log() - now_rest_N.log())).sum()
    agreeing = (logprobs_NV.gather(-1, ids_NK[:, :1])[:, 0] == logprobs_NV.amax(dim=-1)).sum()  # ties agree
    return Divergence(float(kl.clamp_min(0.0)), int(agreeing))  # rounding can fall below 0


def _rest(logprobs_NK: Tensor) -> Tensor:
    """Probability of everything that was not kept; never 0, whose logarithm would be infinite."""
    return (1.0 - logprobs_NK.exp().sum(dim=-1)).clamp_min(torch.finfo(torch.float32).eps)


def kept_examples(examples: Sequence[EvaluationExample], *, max_tokens: int) -> frozenset[str]:
    """Ids of the first examples that together have at most `max_tokens` measured tokens."""
    chosen, num_tokens = [], 0
    for example in examples:
        num_tokens += sum(map(len, example.candidate_ids))
        if num_tokens > max_tokens:
            break
        chosen.append(example.example_id)
    return frozenset(chosen)


def write_kept(path: Path, kept: Mapping[str, KeptTokens]) -> None:
    """Write the kept tokens of some examples, atomically."""
    names = sorted(kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(
            file,
            names=np.array(names, dtype=np.str_),
            lengths=np.array([len(kept[name].ids_NK) for name in names], dtype=np.int64),
            ids=np.concatenate([kept[name].ids_NK for name in names]),
            logprobs=np.concatenate([kept[name].logprobs_NK for name in names]),
        )
    part.replace(path)


def read_kept(path: Path) -> dict[str, KeptTokens]:
    """What `write_kept` wrote; nothing where nothing was kept.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            names, lengths, ids, logprobs = (file[key] for key in ("names", "lengths", "ids", "logprobs"))
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged ({error}). Remove the run folder and train again.") from None
    ends = np.cumsum(lengths)
    return {
        str(name): KeptTokens(ids[end - length : end], logprobs[end - length : end])
        for name, end, length in zip(names, ends, lengths, strict=True)
    }

"""Which weights stay as they were, decided by name alone: the plan counts them as the ranks will freeze them."""

import re
from collections.abc import Iterable

from trainer.config.errors import ConfigError
from trainer.config.schema import FreezeSection

_EMBEDDING_MODULES = frozenset(
    ("embed_tokens", "embed_positions", "wte", "wpe", "word_embeddings", "position_embeddings", "token_type_embeddings")
)
_NO_BLOCK = 1 << 30
_BLOCK_NUMBER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")


def frozen_names(names: Iterable[str], freeze: FreezeSection | None) -> set[str]:
    """Names of the parameters that `freeze` keeps from training.

    Raises:
        ConfigError: a part of it names nothing, or nothing is left to train.
    """
    all_names = list(names)
    if freeze is None:
        return set()
    frozen: set[str] = set()
    if freeze.embeddings:
        frozen |= _some({n for n in all_names if _EMBEDDING_MODULES & set(n.split("."))}, "embeddings", all_names)
    if freeze.first_layers:
        frozen |= _some({n for n in all_names if _block_of(n) < freeze.first_layers}, "first_layers", all_names)
        last = max(_block_of(n) for n in all_names if _block_of(n) < _NO_BLOCK)
        if freeze.first_layers > last + 1:
            raise ConfigError(f"freeze.first_layers: found {freeze.first_layers}, but the model has {last + 1} layers.")
    for pattern in freeze.patterns:
        frozen |= _some({n for n in all_names if re.search(pattern, n)}, f"patterns: {pattern!r}", all_names)
    if frozen == set(all_names):
        raise ConfigError("freeze: every weight of the model would be frozen; nothing is left to train.")
    return frozen


def _block_of(name: str) -> int:
    match = _BLOCK_NUMBER.search(name)
    return int(match[1]) if match else _NO_BLOCK


def _some(matched: set[str], what: str, names: list[str]) -> set[str]:
    if not matched:
        raise ConfigError(f"freeze.{what}: no weight of the model has such a name. Names look like {names[0]}.")
    return matched

"""Random state: seeds derived by purpose and rank, and the state as plain tensors for checkpoints."""

import hashlib
import json
import random
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: the same everywhere, unrelated between purposes."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int, *purpose: str | int) -> None:
    """Seed Python, numpy and torch (all devices) for one purpose."""
    value = derived_seed(seed, *purpose)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def random_state() -> dict[str, Any]:
    """State of every generator: tensors and JSON values only, nothing that needs unpickling."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([str(name), [int(key) for key in np.asarray(keys)], position, has_gauss, gauss]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0, dtype=torch.uint8),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo everything since `random_state` returned this value."""
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = json.loads(state["numpy"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"].numel() and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])

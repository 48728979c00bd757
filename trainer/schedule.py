"""Learning rate as a function of the step. Pure; no state to save or to lose."""

import math
from typing import Literal


def learning_rate_at(
    step: int,
    *,
    peak: float,
    num_steps: int,
    warmup_steps: int = 0,
    final_share: float = 0.1,
    schedule: Literal["cosine", "constant"] = "cosine",
) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Linear warm-up: step s uses peak * (s + 1) / warmup_steps, so that no step is wasted at rate 0.
    Cosine: from the peak, at the first step after the warm-up, to final_share * peak at the last step
    (Loshchilov and Hutter 2017, SGDR, equation 5, without restarts).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return peak * (final_share + (1.0 - final_share) * cosine)

"""How much each task counts before its weight, from the sizes of the tasks.

Pure: numbers in, numbers out. Weights over time are the business of course.py, the order that keeps the shares that of
mixture.py.
"""

from collections.abc import Sequence

import numpy as np

from trainer.config.data_schema import MixtureSection


def base_weights(mixture: MixtureSection, *, sizes: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """Factor of each task's weight, the largest is 1.

    explicit: 1. proportional: r_i^(1/T) with r_i = min(size_i, cap), which over its sum is the examples-proportional
    mixing with a limit K = cap, and the temperature-scaled mixing, of Raffel et al. (2020, "Exploring the Limits of
    Transfer Learning", arXiv 1910.10683, section 3.5.2). Sizes are counted in `unit`.

    Args:
        sizes: training examples of each task.
        tokens: tokens of all training examples of each task.
    """
    if mixture.weights == "explicit":
        return np.ones(len(sizes))
    capped = np.asarray(sizes if mixture.unit == "examples" else tokens, dtype=np.float64)
    if mixture.cap is not None:
        capped = np.minimum(capped, mixture.cap)
    # Relative to the largest, because a low temperature is a high power: 1e6 ** 100 is no float.
    return (capped / np.max(capped)) ** (1.0 / mixture.temperature)

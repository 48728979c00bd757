"""How much of the training each task is asked to be, from the weights or sizes of the tasks.

Pure: numbers in, shares out. What order keeps the shares is the business of mixture.py.
"""

from collections.abc import Sequence

import numpy as np

from trainer.config.data_schema import MixtureSection


def task_shares(
    mixture: MixtureSection, *, weights: Sequence[float], sizes: Sequence[int], tokens: Sequence[int]
) -> np.ndarray:
    """Share of each task, in the unit of the mixture.

    explicit: weight_i / sum of weights. proportional: r_i^(1/T) / sum of r^(1/T) with r_i = min(size_i, cap), the
    examples-proportional mixing with a limit K = cap, and the temperature-scaled mixing, of Raffel et al. (2020,
    "Exploring the Limits of Transfer Learning", arXiv 1910.10683, section 3.5.2). Sizes are counted in `unit`.

    Args:
        weights: `weight` of each task.
        sizes: training examples of each task.
        tokens: tokens of all training examples of each task.

    Returns:
        float64 array that sums to 1.
    """
    if mixture.weights == "explicit":
        asked = np.asarray(weights, dtype=np.float64)
    else:
        capped = np.asarray(sizes if mixture.unit == "examples" else tokens, dtype=np.float64)
        if mixture.cap is not None:
            capped = np.minimum(capped, mixture.cap)
        # Relative to the largest, because a low temperature is a high power: 1e6 ** 100 is no float.
        asked = (capped / np.max(capped)) ** (1.0 / mixture.temperature)
    return asked / np.sum(asked)

"""What a comparison of this size can show, and how many examples would show more.

Pure functions of numbers. Normal approximation, as in Miller 2024 (arXiv 2411.00640, section 5);
the standard error is of a paired difference, so what pairing saves is already in it.
"""

import math
from statistics import NormalDist


def minimal_detectable_effect(standard_error: float, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """Smallest true difference that a two-sided test finds with this power: (z_{1 - a/2} + z_power) * SE.

    In the unit of the standard error; 2.80 of them by default.

    Raises:
        ValueError: a standard error below 0 or not finite, or a confidence or power outside (0, 1).
    """
    return _num_standard_errors(standard_error, confidence=confidence, power=power) * standard_error


def num_examples_for_margin(
    standard_error: float, num_examples: int, margin: float, *, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Examples at which non-inferiority with this margin is shown with this power, if nothing truly changed.

    The interval must end above -margin: z_{1 - a/2} * SE' + z_power * SE' <= margin, where SE' falls with the
    square root of the number of examples (of clusters as large as now). At least 2.

    Raises:
        ValueError: as above, fewer than 1 example, or a margin not above 0.
    """
    if num_examples < 1 or not 0 < margin < math.inf:
        raise ValueError(f"{num_examples} example(s) and margin {margin}: both must be above 0")
    reach = _num_standard_errors(standard_error, confidence=confidence, power=power) * standard_error / margin
    return max(2, math.ceil(num_examples * reach**2))


def _num_standard_errors(standard_error: float, *, confidence: float, power: float) -> float:
    """z_{1 - a/2} + z_power; refuses what makes no sense (ValueError)."""
    if not 0 <= standard_error < math.inf:
        raise ValueError(f"a standard error must be finite and not negative, not {standard_error}")
    if not (0 < confidence < 1 and 0 < power < 1):
        raise ValueError(f"confidence and power must lie between 0 and 1: {confidence}, {power}")
    return NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)

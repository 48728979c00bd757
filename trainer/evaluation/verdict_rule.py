"""The three-way verdict on one capability and on all of them together, as an exit code too.

`Not shown to be worse` is never read as `kept`: a capability is kept only if the interval of
its gain ends above the margin. Pure; knows nothing of how an interval or a p value is made.
"""

from collections.abc import Collection
from typing import Literal, TypeAlias

from trainer.config.errors import EXIT_DONE, EXIT_INCONCLUSIVE, EXIT_REGRESSED

Verdict: TypeAlias = Literal["NON-INFERIOR", "REGRESSED", "INCONCLUSIVE"]


def verdict(
    gain_low: float,
    gain_high: float,
    *,
    margin: float,
    adjusted_p: float,
    alpha: float = 0.05,
    null_flip_rate: float | None = None,
) -> tuple[Verdict, str]:
    """Verdict on one capability from the interval of its gain (after - before, above 0 is better), and the reason.

    NON-INFERIOR: the interval ends above -margin. REGRESSED: all of it lies below 0, it reaches the margin, and
    the p value, adjusted by the caller over all capabilities (Holm), is below alpha. INCONCLUSIVE: otherwise.
    `null_flip_rate` is the share of examples that flip between two runs of one model; a margin below it cannot
    be told from noise, so nothing is NON-INFERIOR by it. Gain and margin have one unit.

    Raises:
        ValueError: an interval whose ends are not in order, a margin not above 0, or a p, alpha or rate outside [0, 1].
    """
    _check_inputs(gain_low, gain_high, margin=margin, shares=(adjusted_p, alpha, null_flip_rate or 0.0))
    interval = f"gain in [{gain_low:+.4g}, {gain_high:+.4g}]"
    if gain_low > -margin and null_flip_rate is not None and margin < null_flip_rate:
        return "INCONCLUSIVE", f"margin {margin:.4g} is below the null-flip rate {null_flip_rate:.4g}: {interval}"
    if gain_low > -margin:
        small = ", a loss that is small but clear" if gain_high < 0 else ""
        return "NON-INFERIOR", f"{interval} is above the margin {-margin:+.4g}{small}"
    if gain_high < 0 and adjusted_p < alpha:
        return "REGRESSED", f"{interval} is below 0 and reaches the margin {-margin:+.4g}, adjusted p {adjusted_p:.2g}"
    if gain_high < 0:
        return "INCONCLUSIVE", f"{interval} is below 0, but adjusted p {adjusted_p:.2g} is not below {alpha:.4g}"
    return "INCONCLUSIVE", f"{interval} holds both 0 and the margin {-margin:+.4g}: too few examples to tell"


def overall(verdicts: Collection[Verdict]) -> Verdict:
    """REGRESSED if any is, else INCONCLUSIVE if any is, else NON-INFERIOR.

    Raises:
        ValueError: no verdicts, from which nothing follows.
    """
    if not verdicts:
        raise ValueError("no verdicts: nothing was measured on both sides")
    worst_first: tuple[Verdict, ...] = ("REGRESSED", "INCONCLUSIVE", "NON-INFERIOR")
    return next(one for one in worst_first if one in verdicts)


def exit_code(verdict: Verdict) -> int:
    """0 for NON-INFERIOR, 3 for REGRESSED, 4 for INCONCLUSIVE."""
    match verdict:
        case "NON-INFERIOR":
            return EXIT_DONE
        case "REGRESSED":
            return EXIT_REGRESSED
        case "INCONCLUSIVE":
            return EXIT_INCONCLUSIVE


def _check_inputs(gain_low: float, gain_high: float, *, margin: float, shares: tuple[float, ...]) -> None:
    """Refuse what no verdict follows from (ValueError); nan fails every comparison."""
    if not gain_low <= gain_high:
        raise ValueError(f"the interval of the gain has no order: [{gain_low}, {gain_high}]")
    if not margin > 0:
        raise ValueError(f"the margin must be above 0, not {margin}")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"adjusted p, alpha and null-flip rate must lie between 0 and 1: {shares}")

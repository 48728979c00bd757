"""The answer of a report in plain words, for someone who was not there. Adds no numbers of its own."""

from dataclasses import dataclass

from trainer.evaluation.capability_row import CapabilityRow
from trainer.evaluation.report import ForgettingReport
from trainer.evaluation.report_text import interval, label, number, share, signed

SIGNS = {"REGRESSED": "\u25bc", "INCONCLUSIVE": "?", "NON-INFERIOR": "\u2713", "NOT MEASURED": "\u2013"}
"""Seen where colours are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The overall verdict in words for someone who was not there."""

    verdict: str
    sign: str
    line: str
    details: tuple[str, ...]
    """What else must be known to read the line right."""


def answer(report: ForgettingReport) -> Answer:
    """What a manager must know: the verdict in plain words, what could not be told and what that would take."""
    base = [row for row in report.rows if row.group == "base"]
    verdict = report.verdict or "NOT MEASURED"
    named = ", ".join(one.capability for one in report.capabilities if one.verdict == verdict)
    unclear = [row for row in base if row.verdict == "INCONCLUSIVE"]
    more = [row for row in unclear if _asks_for_examples(row)]
    match verdict:
        case "REGRESSED":
            line = f"This model has measurably lost: {named}."
        case "INCONCLUSIVE":
            line = f"Not enough examples to tell: {named}." if more else f"It cannot be told what was lost of: {named}."
        case "NON-INFERIOR":
            line = "Nothing lost beyond the margin was found, and the data are enough to say so."
        case _:
            line = "Not measured: no base ability was measured, so what this model has forgotten is unknown."
    details = [f"Lost: {summary(row)}." for row in base if row.verdict == "REGRESSED"]
    details += [_why_unclear(row) for row in unclear]
    small = [row for row in base if row.verdict == "NON-INFERIOR" and row.change == "worsened"]
    details += [f"A loss that is small but clear, within the margin: {summary(row)}." for row in small]
    at_chance = [label(row) for row in base if row.chance is not None and row.retention is None]
    if at_chance:
        details.append(f"Little to lose, as the base was not shown to be above chance: {', '.join(at_chance)}.")
    worse = [summary(row) for row in report.rows if row.group == "trained" and row.change == "worsened"]
    details += [f"A trained task got worse: {one}." for one in worse]
    return Answer(verdict=verdict, sign=SIGNS[verdict], line=line, details=tuple(details))


def _asks_for_examples(row: CapabilityRow) -> bool:
    """Whether a row is INCONCLUSIVE for want of examples, which its `num_examples_needed` would cure."""
    return not _is_drowned(row) and row.change != "worsened" and row.num_examples_needed > row.num_examples


def _is_drowned(row: CapabilityRow) -> bool:
    """Whether the margin lies below the noise floor, so that no number of examples can show it to be kept."""
    return row.null_flip_rate is not None and row.margin < row.null_flip_rate


def _why_unclear(row: CapabilityRow) -> str:
    """Why a row is INCONCLUSIVE, and what would help."""
    if _is_drowned(row):
        floor = f"the {share(row.null_flip_rate)} of answers that flip when the base is measured twice"
        return f"{label(row)}: its margin of {number(row.margin)} {row.unit} lies below {floor}; widen it."
    if row.change == "worsened":
        return f"It looks worse, but not beyond doubt among all measures: {summary(row)}."
    if _asks_for_examples(row):
        return f"{label(row)}: needs about {row.num_examples_needed:,} examples, {row.num_examples:,} were measured."
    return (
        f"{label(row)}: {row.num_examples_needed:,} examples should have been enough had nothing been lost, and "
        f"{row.num_examples:,} were measured; a loss near the margin cannot be excluded."
    )


def summary(row: CapabilityRow) -> str:
    """`prose, loss 4.52 -> 4.93 nats/token (+0.41 [0.38, 0.44])`, with an arrow."""
    return f"{label(row)}, {change_of(row)} ({signed(row.difference)} {interval(row)})"


def change_of(row: CapabilityRow) -> str:
    """`loss 4.52 -> 4.93 nats/token`, with an arrow."""
    return f"{row.measure} {number(row.before)} \u2192 {number(row.after)} {row.unit}"

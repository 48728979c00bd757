"""The report of a comparison: verdicts, rows, the matrix of a sequence of stages, drift, and where they come from.

One frozen value, written as report.json (for programs) and read back equal. Adds no numbers of its own but sums over
rows, and no time: the same rows give the same bytes.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from trainer.config.errors import DataError
from trainer.config.run_folder import read_json_object, write_text_atomically
from trainer.evaluation.capability_row import CapabilityRow, Group, LostExample
from trainer.evaluation.significance import benjamini_hochberg, holm
from trainer.evaluation.stages import Stages
from trainer.evaluation.statistics import EXACT_IDENTICAL
from trainer.evaluation.verdict_rule import Verdict, overall, verdict

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"

SCHEMA_VERSION = 2
"""Goes up when a reader of report.json would have to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityVerdict:
    """One base capability: the worst verdict of its rows."""

    capability: str
    verdict: Verdict
    rows: tuple[str, ...]
    """Names of its rows; each has its own verdict and reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far predictions have moved on given text, over all loss rows of one group, weighted by tokens."""

    group: Group
    """`base`: text of base abilities. `trained`: held-out text of the trained tasks."""
    delta_nll: float
    """Loss after - before, nats per token."""
    kl_nats_per_token: float | None
    """KL(base || model), a lower bound; None where it was not measured."""
    top1_agreement: float | None
    """Share of tokens with the same most likely token; None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How much of a loss a few steps on a copy of the model brought back: see trainer/recover.py."""

    name: str
    """Name of the row."""
    before: float
    """The measure before training, in the row's unit."""
    after: float
    """After training."""
    probed: float
    """After the few steps."""
    recovered_share: float
    """(probed - after) / (before - after): near 1, the ability was out of reach and not gone."""
    num_steps: int
    num_examples: int
    """Examples that were learnt, none of which is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingReport:
    """All rows of one comparison, and what is read off them."""

    schema_version: int
    """Version of the layout of report.json."""
    verdict: Verdict | None
    """Over all base capabilities: REGRESSED if any is, else INCONCLUSIVE if any is. None without base rows."""
    capabilities: tuple[CapabilityVerdict, ...]
    """In the order of their first row."""
    rows: tuple[CapabilityRow, ...]
    """Trained tasks first, then base abilities; within each, in the order they were given."""
    worst_base: str | None
    """Name of the base row whose worsening is clearest: `worsened` before the others, then the largest worsening in
    units of its half interval, since losses and shares have no common unit. None only without base rows."""
    forgotten: tuple[str, ...]
    """Base capabilities with a row whose change is `worsened`. Empty is not proof that nothing was forgotten."""
    drift: tuple[Drift, ...]
    """One for each group that has loss rows."""
    stages: Stages | None
    """The matrix of a sequence of stages; None where the run has one."""
    provenance: Mapping[str, JSON]
    """Where the numbers come from: configuration hash, commit, versions, seeds, step, model."""
    recovery: tuple[Recovery, ...] = ()
    """What a few steps brought back of REGRESSED rows; empty where nobody asked."""


def build_report(
    rows: Iterable[CapabilityRow], *, provenance: Mapping[str, JSON], stages: Stages | None = None
) -> ForgettingReport:
    """Gather rows into a report; base rows get their verdicts, with p values adjusted over all of them (Holm 1979).

    Raises:
        ValueError: no rows, a repeated row name, or a number in the provenance that is not finite.
        TypeError: a provenance value that JSON has no form for.
    """
    ordered = _judged(sorted(rows, key=lambda row: row.group != "trained"))
    names = [row.name for row in ordered]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a report needs rows with different names, got: {', '.join(names) or 'none'}")
    base = [row for row in ordered if row.group == "base"]
    capabilities = _capability_verdicts(base)
    worsened = [row.capability for row in base if row.change == "worsened"]
    return ForgettingReport(
        schema_version=SCHEMA_VERSION,
        verdict=overall([one.verdict for one in capabilities]) if capabilities else None,
        capabilities=capabilities,
        rows=tuple(ordered),
        worst_base=max(base, key=_clarity_of_worsening).name if base else None,
        forgotten=tuple(dict.fromkeys(worsened)),
        drift=tuple(drift_of(ordered)),
        stages=stages,
        provenance=json.loads(json.dumps(provenance, allow_nan=False)),
    )


def write_report(path: Path, report: ForgettingReport) -> None:
    """Write report.json, atomically."""
    text = json.dumps(asdict(report), sort_keys=True, indent=2, allow_nan=False)
    write_text_atomically(path, text + "\n")


def read_report(run_folder: Path) -> ForgettingReport:
    """Read report.json back to a value equal to the one written.

    Raises:
        DataError: the file is missing, damaged, or of another schema version.
    """
    path = run_folder / "report.json"
    if not path.is_file():
        raise DataError(f"{path}: cannot be read (no such file). Has this run finished its evaluation?")
    raw = read_json_object(path)
    if raw is None:
        raise DataError(f"{path}: not a JSON object. Make the report again.")
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema_version is {version!r}, {SCHEMA_VERSION} is needed. Make the report again.")
    try:
        return ForgettingReport(
            **{
                **raw,
                "rows": tuple(_row_from_json(row) for row in raw["rows"]),
                "capabilities": tuple(
                    CapabilityVerdict(**{**one, "rows": tuple(one["rows"])}) for one in raw["capabilities"]
                ),
                "forgotten": tuple(raw["forgotten"]),
                "recovery": tuple(Recovery(**one) for one in raw["recovery"]),
                "drift": tuple(Drift(**one) for one in raw["drift"]),
                "stages": None if raw["stages"] is None else Stages.from_json(raw["stages"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not a report of schema {SCHEMA_VERSION} ({error}). Make the report again.") from None


def _judged(rows: Sequence[CapabilityRow]) -> list[CapabilityRow]:
    """The rows with the verdicts of those of base abilities."""
    adjusted: dict[str, float] = {}
    for group, adjust in (("base", holm), ("trained", benjamini_hochberg)):
        of_group = [row for row in rows if row.group == group]
        adjusted |= zip([row.name for row in of_group], adjust([row.p_value for row in of_group]), strict=True)
    judged = []
    for row in (replace(one, adjusted_p=adjusted[one.name]) for one in rows):
        if row.group == "base":
            sign = 1 if row.higher_is_better else -1
            low, high = sorted((sign * row.interval_low, sign * row.interval_high))
            found, reason = verdict(
                low,
                high,
                margin=row.margin,
                adjusted_p=adjusted[row.name],
                null_flip_rate=None if row.interval_method == EXACT_IDENTICAL else row.null_flip_rate,
            )
            if row.chance is not None and row.retention is None:
                reason += "; the base was not shown to be above chance, so it had little to lose"
            row = replace(row, verdict=found, verdict_reason=reason)
        judged.append(row)
    return judged


def _capability_verdicts(base: Sequence[CapabilityRow]) -> tuple[CapabilityVerdict, ...]:
    names = dict.fromkeys(row.capability for row in base)
    rows = {name: [row for row in base if row.capability == name] for name in names}
    return tuple(
        CapabilityVerdict(
            capability=name,
            verdict=overall([row.verdict for row in several if row.verdict is not None]),
            rows=tuple(row.name for row in several),
        )
        for name, several in rows.items()
    )


def drift_of(rows: Sequence[CapabilityRow]) -> Iterable[Drift]:
    """How far predictions have moved, for each group that has loss rows."""
    groups: tuple[Group, ...] = ("trained", "base")
    for group in groups:
        of_group = [row for row in rows if row.kind == "text" and row.group == group]
        if not of_group:
            continue
        compared = [row for row in of_group if row.kl_nats_per_token is not None]
        yield Drift(
            group=group,
            delta_nll=_mean([(row.difference, row.num_units) for row in of_group]),
            kl_nats_per_token=_mean([(row.kl_nats_per_token or 0.0, row.num_units) for row in compared], empty=None),
            top1_agreement=_mean([(row.top1_agreement or 0.0, row.num_units) for row in compared], empty=None),
        )


def _mean(pairs: Sequence[tuple[float, float]], empty: Any = 0.0) -> Any:
    """Weighted mean of (value, weight)."""
    return sum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs) if pairs else empty


def _clarity_of_worsening(row: CapabilityRow) -> tuple[bool, float]:
    """Worsened or not, then by how many half intervals: infinite for an exact change, 0 for an exact standstill."""
    worsening = -row.difference if row.higher_is_better else row.difference
    half_width = (row.interval_high - row.interval_low) / 2
    if half_width > 0:
        half_intervals = worsening / half_width
    else:
        half_intervals = math.copysign(math.inf, worsening) if worsening else 0.0
    return row.change == "worsened", half_intervals


def _row_from_json(raw: Mapping[str, Any]) -> CapabilityRow:
    """One row from its JSON object; raises KeyError or TypeError on other keys than a row's."""
    missing = {field.name for field in fields(CapabilityRow)} - set(raw)
    if missing:
        raise KeyError(*sorted(missing))
    return CapabilityRow(**{**raw, "lost": tuple(LostExample(**example) for example in raw["lost"])})

"""The report of a run: what was learnt, what was forgotten, and how sure that is.

One frozen value, written as report.json (for programs) and report.md (for people), and
read back equal. Adds no numbers of its own, and no time: the same rows give the same bytes.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from trainer.config.errors import DataError
from trainer.config.run_folder import write_text_atomically
from trainer.evaluation.forgetting import CapabilityRow, Group, LostExample

JSON: TypeAlias = "Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None"

SCHEMA_VERSION = 1
"""Goes up when a reader of report.json would have to change."""

TABLE_COLUMNS = ("Capability", "Measure", "n", "Before", "After", "Difference", "95 % interval", "Verdict")
"""Headings of `table_rows`."""

MAX_EXAMPLE_CHARACTERS = 600
"""Longest prompt, target or answer in report.md; report.json has them whole."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, line and paragraph separators, changes of direction, lone surrogates."""

_MARKDOWN = re.compile(r"[\\|`*~]|(?<!\w)_|_(?!\w)|\](?=\()")
"""What would be read as markup in a line; an underscore inside a word would not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingReport:
    """All rows of one comparison, and the two answers read off them."""

    schema_version: int
    """Version of the layout of report.json."""
    rows: tuple[CapabilityRow, ...]
    """Trained tasks first, then base abilities; within each, in the order they were given."""
    worst_base: str | None
    """Name of the base row whose worsening is clearest: `worsened` before the others, then the largest worsening in
    units of its half interval, since losses and shares have no common unit. None only without base rows."""
    forgotten: tuple[str, ...]
    """Names of the base rows whose change is `worsened`. Empty is not proof that nothing was forgotten."""
    provenance: Mapping[str, JSON]
    """Where the numbers come from: configuration hash, commit, versions, seeds, step, model."""


def build_report(rows: Iterable[CapabilityRow], *, provenance: Mapping[str, JSON]) -> ForgettingReport:
    """Gather rows into a report.

    Raises:
        ValueError: no rows, a repeated row name, or a number in the provenance that is not finite.
        TypeError: a provenance value that JSON has no form for.
    """
    ordered = tuple(sorted(rows, key=lambda row: row.group != "trained"))
    names = [row.name for row in ordered]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a report needs rows with different names, got: {', '.join(names) or 'none'}")
    base = [row for row in ordered if row.group == "base"]
    return ForgettingReport(
        schema_version=SCHEMA_VERSION,
        rows=ordered,
        worst_base=max(base, key=_clarity_of_worsening).name if base else None,
        forgotten=tuple(row.name for row in base if row.change == "worsened"),
        provenance=json.loads(json.dumps(provenance, allow_nan=False)),
    )


def write_report(run_folder: Path, report: ForgettingReport) -> None:
    """Write report.json and report.md into the run folder, each atomically."""
    text = json.dumps(asdict(report), sort_keys=True, indent=2, allow_nan=False)
    write_text_atomically(run_folder / "report.json", text + "\n")
    write_text_atomically(run_folder / "report.md", render_markdown(report))


def read_report(run_folder: Path) -> ForgettingReport:
    """Read report.json back to a value equal to the one written.

    Raises:
        DataError: the file is missing, damaged, or of another schema version.
    """
    path = run_folder / "report.json"
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Has this run finished its evaluation?") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Make the report again.") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema_version is {version!r}, {SCHEMA_VERSION} is needed. Make the report again.")
    try:
        rows = tuple(_row_from_json(row) for row in raw["rows"])
        return ForgettingReport(**{**raw, "rows": rows, "forgotten": tuple(raw["forgotten"])})
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not a report of schema {SCHEMA_VERSION} ({error}). Make the report again.") from None


def table_rows(report: ForgettingReport) -> list[tuple[str, ...]]:
    """Cells of every row, one for each of TABLE_COLUMNS, in the order of `report.rows`; plain text, nothing escaped."""
    return [_cells(row) for row in report.rows]


def render_markdown(report: ForgettingReport) -> str:
    """The report for people: the answer, the table, what was lost, where the numbers come from."""
    parts = ["# What was learnt, what was forgotten", _headline(report)]
    parts += _section("Trained tasks", report=report, group="trained")
    parts += _section("Base abilities", report=report, group="base")
    parts.append(_reading_note(report))
    lost = [_lost_section(row) for row in report.rows if row.lost]
    parts += ["## Lost examples", *lost] if lost else []
    origin = [(key, _as_text(value)) for key, value in sorted(report.provenance.items())]
    parts += ["## Provenance", _markdown_table(("Key", "Value"), rows=origin)] if origin else []
    return "\n\n".join(parts) + "\n"


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


def _headline(report: ForgettingReport) -> str:
    """What was learnt and what was forgotten in one paragraph, the worst base ability beside it."""
    trained = [row for row in report.rows if row.group == "trained"]
    improved = sum(row.change == "improved" for row in trained)
    worsened = sum(row.change == "worsened" for row in trained)
    learnt = f"Learnt: {improved} of {len(trained)} trained tasks improved" + (
        f", {worsened} WORSENED" if worsened else ""
    )
    learnt = f"{learnt}." if trained else "No trained task was measured."
    base = {row.name: row for row in report.rows if row.group == "base"}
    if report.worst_base is None:
        return f"**{learnt} No base ability was measured: what was forgotten is unknown.**"
    worst = base[report.worst_base]
    if report.forgotten:
        lost = "; ".join(_summary(base[name]) for name in report.forgotten)
        return f"**{learnt} Forgotten: {lost}.** Worst base ability: {_escape(_label(worst))}."
    allowed = max(0.0, worst.interval_high if not worst.higher_is_better else -worst.interval_low)
    caveat = _escape(f"for {_label(worst)} the interval allows a worsening of up to {_number(allowed)} {worst.unit}")
    return (
        f"**{learnt} No base ability worsened beyond its interval** (this is not proof that none did: {caveat}). "
        f"Worst base ability: {_summary(worst)}."
    )


def _summary(row: CapabilityRow) -> str:
    """`prose (loss 4.52 -> 4.93 nats/token, +0.41 [0.38, 0.44])`, escaped."""
    change = f"{_number(row.before)} -> {_number(row.after)} {row.unit}"
    return _escape(f"{row.capability} ({row.measure} {change}, {_signed(row.difference)} {_interval(row)})")


def _section(title: str, *, report: ForgettingReport, group: Group) -> list[str]:
    """Heading and table of one group; nothing if the group is empty."""
    rows = [_cells(row) for row in report.rows if row.group == group]
    return [f"## {title}", _markdown_table(TABLE_COLUMNS, rows=rows)] if rows else []


def _reading_note(report: ForgettingReport) -> str:
    """How to read the table, and how each interval was made."""
    methods: dict[str, list[str]] = {}
    for row in report.rows:
        methods.setdefault(row.interval_method, []).append(_label(row))
    made = "; ".join(f"{method}: {', '.join(labels)}" for method, labels in methods.items())
    return (
        '"no clear change" means that the interval includes zero: a change was not shown, which is not the same as '
        "none. Each interval stands alone: of many rows, about one in twenty excludes zero by chance. Intervals cover "
        f"the choice of examples, not the training seed. Methods: {_escape(made)}."
    )


def _lost_section(row: CapabilityRow) -> str:
    """Collapsible list of the examples one row lost."""
    counts = f"{len(row.lost)} shown, largest fall first"
    if row.num_lost is not None and row.mcnemar_p is not None:
        test = f"exact McNemar p = {_number(row.mcnemar_p)}"
        counts = f"{row.num_lost} lost, {row.num_gained} gained ({test}), {len(row.lost)} shown"
    blocks = [f"<details>\n<summary>{_escape_html(_label(row))}: {counts}</summary>"]
    for number, lost in enumerate(row.lost, start=1):
        blocks += [f"**Example {number}**", f"Prompt:\n\n{_fenced(lost.prompt)}", f"Target:\n\n{_fenced(lost.target)}"]
        said = (("before", lost.answer_before), ("after", lost.answer_after))
        blocks += [f"Answer {when}:\n\n{_fenced(text)}" for when, text in said if text is not None]
    return "\n\n".join([*blocks, "</details>"])


def _cells(row: CapabilityRow) -> tuple[str, ...]:
    """One row of the table as text, in the order of TABLE_COLUMNS."""
    return (
        row.capability,
        f"{row.measure} ({row.unit})",
        str(row.num_examples),
        _number(row.before),
        _number(row.after),
        _signed(row.difference),
        _interval(row),
        "WORSENED" if row.change == "worsened" else row.change,
    )


def _label(row: CapabilityRow) -> str:
    """The capability, with the task's name where that says more."""
    return row.capability if row.capability == row.name else f"{row.capability} ({row.name})"


def _interval(row: CapabilityRow) -> str:
    return f"[{_number(row.interval_low)}, {_number(row.interval_high)}]"


def _number(value: float) -> str:
    """Three significant digits, without an exponent for large numbers and without a negative zero."""
    return f"{value + 0.0:.0f}" if abs(value) >= 999.5 else f"{value + 0.0:.3g}"


def _signed(value: float) -> str:
    """Three significant digits with their sign; zero has none."""
    return f"+{_number(value)}" if value > 0 else _number(value)


def _as_text(value: JSON) -> str:
    """A provenance value: text as it is, anything else as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _markdown_table(columns: Sequence[str], *, rows: Iterable[Sequence[str]]) -> str:
    """A GitHub table; cells are escaped."""
    cells = [columns, ["---"] * len(columns), *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _escape(text: str) -> str:
    """Text for one line of markdown or one table cell: nothing in it is markup, a newline becomes a space."""
    return _MARKDOWN.sub(r"\\\g<0>", _escape_html(text))


def _escape_html(text: str) -> str:
    """Text for one line of HTML."""
    line = " ".join(_visible(text).split("\n"))
    return line.replace("&", "&amp;").replace("<", "&lt;")


def _visible(text: str) -> str:
    """The text with its line ends as newlines, and escapes in place of what would not show or would disturb."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), lines)


def _fenced(text: str) -> str:
    """A code block that its own content cannot close; the middle of a long text is left out."""
    if len(text) > MAX_EXAMPLE_CHARACTERS:
        half = MAX_EXAMPLE_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    shown = _visible(text) or "(empty)"
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"

"""The report for people: a table for the screen, and report.md. Adds no numbers of its own."""

import json
import re
from collections.abc import Iterable, Sequence

from trainer.evaluation.capability_row import CapabilityRow, Group
from trainer.evaluation.report import JSON, ForgettingReport
from trainer.evaluation.stages import Stages

TABLE_COLUMNS = ("Capability", "Measure", "n", "Before", "After", "Difference", "95 % interval", "Verdict")
"""Headings of `table_rows`."""

MAX_LOST_EXAMPLES = 20
"""Lost examples of a row in report.md; report.json and report.html have more."""

MAX_EXAMPLE_CHARACTERS = 600
"""Longest prompt, target or answer in report.md; report.json has them whole."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, line and paragraph separators, changes of direction, lone surrogates."""

_MARKDOWN = re.compile(r"[\\|`*~]|(?<!\w)_|_(?!\w)|\](?=\()")
"""What would be read as markup in a line; an underscore inside a word would not."""


def table_rows(report: ForgettingReport) -> list[tuple[str, ...]]:
    """Cells of every row, one for each of TABLE_COLUMNS, in the order of `report.rows`; plain text, nothing escaped."""
    return [_cells(row) for row in report.rows]


def render_markdown(report: ForgettingReport) -> str:
    """The report for people: the answer, the table, what was lost, where the numbers come from."""
    parts = ["# What was learnt, what was forgotten", f"**{_escape(headline(report))}**"]
    parts += _section("Trained tasks", report=report, group="trained")
    parts += _section("Base abilities", report=report, group="base")
    parts += _verdict_section(report)
    parts += _stages_section(report.stages) if report.stages is not None else []
    parts += _drift_section(report)
    parts += _recovery_section(report)
    parts.append(_reading_note(report))
    lost = [_lost_section(row) for row in report.rows if row.lost]
    parts += ["## Lost examples", *lost] if lost else []
    origin = [(key, as_text(value)) for key, value in sorted(report.provenance.items())]
    parts += ["## Provenance", markdown_table(("Key", "Value"), rows=origin)] if origin else []
    return "\n\n".join(parts) + "\n"


def headline(report: ForgettingReport) -> str:
    """What was learnt and what was forgotten in one paragraph of plain text, the worst base ability beside it."""
    trained = [row for row in report.rows if row.group == "trained"]
    improved = sum(row.change == "improved" for row in trained)
    worsened = sum(row.change == "worsened" for row in trained)
    learnt = f"Learnt: {improved} of {len(trained)} trained tasks improved" + (
        f", {worsened} WORSENED." if worsened else "."
    )
    learnt = learnt if trained else "No trained task was measured."
    if report.verdict is None or report.worst_base is None:
        return f"{learnt} No base ability was measured: what was forgotten is unknown."
    by_verdict = {
        name: [one.capability for one in report.capabilities if one.verdict == name]
        for name in ("REGRESSED", "INCONCLUSIVE", "NON-INFERIOR")
    }
    verdicts = "; ".join(f"{name}: {', '.join(names)}" for name, names in by_verdict.items() if names)
    (worst,) = [row for row in report.rows if row.name == report.worst_base]
    return f"{learnt} Base abilities: {report.verdict} ({verdicts}). Worst: {_summary(worst)}."


def row_verdict(row: CapabilityRow) -> str:
    """The verdict of a base row; the change of a trained one."""
    if row.verdict is not None:
        return row.verdict
    return "WORSENED" if row.change == "worsened" else row.change


def _summary(row: CapabilityRow) -> str:
    """`prose (loss 4.52 -> 4.93 nats/token, +0.41 [0.38, 0.44])`."""
    change = f"{number(row.before)} -> {number(row.after)} {row.unit}"
    return f"{label(row)} ({row.measure} {change}, {signed(row.difference)} {interval(row)})"


def _section(title: str, *, report: ForgettingReport, group: Group) -> list[str]:
    """Heading and table of one group; nothing if the group is empty."""
    rows = [_cells(row) for row in report.rows if row.group == group]
    return [f"## {title}", markdown_table(TABLE_COLUMNS, rows=rows)] if rows else []


def _verdict_section(report: ForgettingReport) -> list[str]:
    """Why each base row got its verdict, and how much more data would tell."""
    base = [row for row in report.rows if row.verdict is not None]
    if not base:
        return []
    columns = ("Capability", "Verdict", "Margin", "Why", "Holm p", "Smallest change to be found", "n needed")
    cells = [
        (
            label(row),
            row_verdict(row),
            f"{number(row.margin)} {row.unit}",
            row.verdict_reason,
            "" if row.adjusted_p is None else number(row.adjusted_p),
            number(row.minimal_detectable_effect),
            f"{row.num_examples_needed:,}" if row.verdict == "INCONCLUSIVE" else "",
        )
        for row in base
    ]
    return ["## Verdicts", markdown_table(columns, rows=cells), *_flip_table(base)]


def _flip_table(base: Sequence[CapabilityRow]) -> list[str]:
    """What happened to single answers."""
    columns = (
        *("Capability", "Lost", "Gained", "Lost of what it knew", "Same answer", "Null flips", "Retention"),
        "Unreadable answers",
    )
    cells = [
        (
            label(row),
            str(row.num_lost),
            str(row.num_gained),
            share(row.conditional_forgetting),
            share(row.answer_agreement),
            share(row.null_flip_rate),
            "base at chance" if row.retention is None else share(row.retention),
            "" if row.num_unparsed_after is None else f"{row.num_unparsed_before} -> {row.num_unparsed_after}",
        )
        for row in base
        if row.num_lost is not None
    ]
    return ["### Single answers", markdown_table(columns, rows=cells)] if cells else []


def _stages_section(stages: Stages) -> list[str]:
    """The matrix of a sequence, and what is read off it."""
    columns = ("After", "Step", *stages.tasks)
    cells = [
        (name, str(step), *map(number, row))
        for name, step, row in zip(stages.stages, stages.steps, stages.scores_RT, strict=True)
    ]
    measures = {
        "ACC": stages.average_accuracy,
        "average over time": stages.average_over_time,
        "BWT": stages.backward_transfer,
        "FWT (against the base)": stages.forward_transfer,
        "forgetting (best ever - now)": stages.forgetting,
        "mean change of base abilities": stages.ability_delta,
        f"worst of them ({stages.worst_ability})": stages.worst_ability_delta,
    }
    told = [f"{name} {signed(value)}" for name, value in measures.items() if value is not None]
    if stages.intransigence is not None:
        told.append(f"intransigence {', '.join(map(signed, stages.intransigence))}")
    return ["## Stages", markdown_table(columns, rows=cells), _escape("; ".join(told) + ".")]


def _drift_section(report: ForgettingReport) -> list[str]:
    """How far predictions have moved."""
    columns = ("Text of", "Loss, nats/token", "KL from the base, nats/token", "Same most likely token")
    cells = [
        (
            "base abilities" if drift.group == "base" else "trained tasks",
            signed(drift.delta_nll),
            "not measured" if drift.kl_nats_per_token is None else number(drift.kl_nats_per_token),
            "not measured" if drift.top1_agreement is None else share(drift.top1_agreement),
        )
        for drift in report.drift
    ]
    return ["## Drift", markdown_table(columns, rows=cells)] if cells else []


def _recovery_section(report: ForgettingReport) -> list[str]:
    """What a few steps brought back."""
    columns = ("Measure", "Before", "After", "After a few steps", "Came back", "Steps", "Examples")
    cells = [
        (
            one.name,
            number(one.before),
            number(one.after),
            number(one.probed),
            share(one.recovered_share),
            str(one.num_steps),
            str(one.num_examples),
        )
        for one in report.recovery
    ]
    return ["## Recovery probe", markdown_table(columns, rows=cells)] if cells else []


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _reading_note(report: ForgettingReport) -> str:
    """How to read the table, and how each interval was made."""
    methods: dict[str, list[str]] = {}
    for row in report.rows:
        methods.setdefault(row.interval_method, []).append(label(row))
    made = "; ".join(f"{method}: {', '.join(labels)}" for method, labels in methods.items())
    return (
        '"no clear change" means that the interval includes zero: a change was not shown, which is not the same as '
        "none. NON-INFERIOR: the interval excludes a loss as large as the margin. REGRESSED: the loss is clear, also "
        "after Holm's correction over all base rows, and reaches the margin. INCONCLUSIVE: too few examples to tell. "
        "Each interval stands alone: of many rows, about one in twenty excludes zero by chance. Intervals cover "
        f"the choice of examples, not the training seed. Methods: {_escape(made)}."
    )


def _lost_section(row: CapabilityRow) -> str:
    """Collapsible list of the examples one row lost."""
    shown = row.lost[:MAX_LOST_EXAMPLES]
    counts = f"{len(shown)} shown, largest fall first"
    if row.num_lost is not None:
        test = f"{row.p_method} p = {number(row.p_value)}"
        counts = f"{row.num_lost} lost, {row.num_gained} gained ({test}), {len(shown)} shown"
    blocks = [f"<details>\n<summary>{_escape_html(label(row))}: {counts}</summary>"]
    for place, lost in enumerate(shown, start=1):
        blocks += [f"**Example {place}**", f"Prompt:\n\n{_fenced(lost.prompt)}", f"Target:\n\n{_fenced(lost.target)}"]
        said = (("before", lost.answer_before), ("after", lost.answer_after))
        blocks += [f"Answer {when}:\n\n{_fenced(text)}" for when, text in said if text is not None]
    return "\n\n".join([*blocks, "</details>"])


def _cells(row: CapabilityRow) -> tuple[str, ...]:
    """One row of the table as text, in the order of TABLE_COLUMNS."""
    return (
        row.capability,
        f"{row.measure} ({row.unit})",
        str(row.num_examples),
        number(row.before),
        number(row.after),
        signed(row.difference),
        interval(row),
        row_verdict(row),
    )


def label(row: CapabilityRow) -> str:
    """The capability, with the task's name where that says more."""
    return row.capability if row.capability == row.name else f"{row.capability} ({row.name})"


def interval(row: CapabilityRow) -> str:
    return f"[{number(row.interval_low)}, {number(row.interval_high)}]"


def number(value: float) -> str:
    """Three significant digits, without an exponent for large numbers and without a negative zero."""
    return f"{value + 0.0:.0f}" if abs(value) >= 999.5 else f"{value + 0.0:.3g}"


def signed(value: float) -> str:
    """Three significant digits with their sign; zero has none."""
    return f"+{number(value)}" if value > 0 else number(value)


def as_text(value: JSON) -> str:
    """A provenance value: text as it is, anything else as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def markdown_table(columns: Sequence[str], *, rows: Iterable[Sequence[str]]) -> str:
    """A GitHub table; cells are escaped."""
    cells = [columns, ["---"] * len(columns), *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _escape(text: str) -> str:
    """Text for one line of markdown or one table cell: nothing in it is markup, a newline becomes a space."""
    return _MARKDOWN.sub(r"\\\g<0>", _escape_html(text))


def _escape_html(text: str) -> str:
    """Text for one line of HTML."""
    line = " ".join(visible(text).split("\n"))
    return line.replace("&", "&amp;").replace("<", "&lt;")


def visible(text: str) -> str:
    """The text with its line ends as newlines, and escapes in place of what would not show or would disturb."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), lines)


def _fenced(text: str) -> str:
    """A code block that its own content cannot close; the middle of a long text is left out."""
    if len(text) > MAX_EXAMPLE_CHARACTERS:
        half = MAX_EXAMPLE_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    shown = visible(text) or "(empty)"
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"

"""A run's report as one HTML file for people: the answer first, then figures, tables, lost examples and origin.

Loads nothing from elsewhere; the same report gives the same bytes. Adds no numbers of its own.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from trainer.config.errors import DataError
from trainer.config.run_folder import RunFolder, write_text_atomically
from trainer.evaluation.capability_row import CapabilityRow, Group
from trainer.evaluation.figures import HistoryPoint, figures_of, largest_loss, svg_of
from trainer.evaluation.report import ForgettingReport, read_report
from trainer.evaluation.report_text import (
    TABLE_COLUMNS,
    as_text,
    headline,
    interval,
    label,
    number,
    row_verdict,
    share,
    signed,
    table_rows,
    visible,
)
from trainer.evaluation.stages import Stages
from trainer.report_answer import SIGNS, answer, change_of
from trainer.report_page import SCRIPT, STYLE, TEMPLATE

HISTORY_PREFIXES = ("forgetting/", "learning/", "drift/")
"""What names of comparisons in metrics.jsonl begin with."""

WORDS = {
    "REGRESSED": "measurably lost",
    "INCONCLUSIVE": "cannot be told yet",
    "NON-INFERIOR": "no loss beyond the margin",
}
CAPTIONS = {
    "forest": "Difference of every measure with its 95 % interval; worse is to the left.",
    "stages": "Score of every task after every stage; the table below has the numbers.",
    "learning": "What each trained task gained, against the loss of the base ability that lost most in its margins.",
    "drift": "How far predictions have moved from the base model at each measurement while training.",
}
GROUPS: dict[Group, str] = {"base": "base abilities", "trained": "trained tasks"}


def write_html(run_folder: Path) -> Path:
    """Write report.html from report.json, and from metrics.jsonl if it is there; its path.

    Raises:
        DataError: report.json is missing, or one of both is damaged.
    """
    report = read_report(run_folder)
    metrics = RunFolder(run_folder).metrics
    history = read_history(metrics) if metrics.is_file() else []
    path = run_folder / "report.html"
    write_text_atomically(path, render_html(report, history, title=run_folder.resolve().name))
    return path


def read_history(path: Path) -> list[HistoryPoint]:
    """The comparisons in metrics.jsonl, one point a step, in order; of two values of one step the later one.

    A last line without its end is of a run that is being written, and is left out.

    Raises:
        DataError: a line is not a JSON object with a step and finite numbers.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    steps: dict[int, dict[str, float]] = {}
    for place, line in enumerate(lines, start=1):
        point = _comparison(line)
        if point is None or not all(map(math.isfinite, point.values.values())):
            raise DataError(
                f"{path}, line {place}: {line[:80]!r} is no object with a step and finite numbers. Mend or remove it."
            )
        if point.values:
            steps.setdefault(point.step, {}).update(point.values)
    return [HistoryPoint(step, values) for step, values in sorted(steps.items())]


def _comparison(line: str) -> HistoryPoint | None:
    """The comparison in a line of metrics.jsonl, empty where it holds other numbers; None where it is damaged."""
    try:
        raw = json.loads(line)
        found = {name: float(value) for name, value in raw.items() if name.startswith(HISTORY_PREFIXES)}
        return HistoryPoint(int(raw["step"]), found)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def render_html(report: ForgettingReport, history: Sequence[HistoryPoint], *, title: str) -> str:
    """The page; what a report lacks has no heading on it."""
    alternatives = _alternatives(report, history)
    figures = figures_of(report, history)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    lost = [_lost_group(row) for row in sorted(report.rows, key=lambda row: row.group != "base") if row.lost]
    page = environment.from_string(TEMPLATE).render(
        title=title,
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        script_sha256=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        answer=answer(report),
        headline=headline(report),
        cards=_cards(report),
        figures={name: svg_of(figure, name=name, label=alternatives[name]) for name, figure in figures.items()},
        captions=CAPTIONS,
        stages=None if report.stages is None else _stages_table(report.stages),
        stage_measures=[] if report.stages is None else _stage_measures(report.stages),
        drift=_drift_table(report),
        all_rows=_table("Before and after training", TABLE_COLUMNS, table_rows(report)),
        methods=_methods(report),
        answers=_answers_table(report),
        recovery=_recovery_table(report),
        lost=lost,
        lost_capabilities=list(dict.fromkeys(group["capability"] for group in lost)),
        provenance=_provenance_table(report),
    )
    return visible(page)


def _cards(report: ForgettingReport) -> list[dict[str, Any]]:
    """One a base capability, the worst verdicts first."""
    by_name = {row.name: row for row in report.rows}
    order = list(WORDS)
    return [
        {
            **{"capability": one.capability, "verdict": one.verdict, "sign": SIGNS[one.verdict]},
            "words": WORDS[one.verdict],
            "is_worst": report.worst_base in one.rows,
            "measures": [_card_measure(by_name[name], alone=len(one.rows) == 1) for name in one.rows],
        }
        for one in sorted(report.capabilities, key=lambda one: order.index(one.verdict))
    ]


def _card_measure(row: CapabilityRow, *, alone: bool) -> dict[str, Any]:
    """One row of a card; several tell themselves apart by name and verdict."""
    facts = [] if alone else [("Task", row.name), ("Verdict", row_verdict(row))]
    facts += [
        ("Difference", f"{signed(row.difference)} {row.unit}"),
        ("95 % interval", interval(row)),
        ("Margin", f"{number(row.margin)} {row.unit}"),
        ("Examples", f"{row.num_examples:,}"),
    ]
    if row.verdict == "INCONCLUSIVE":
        facts.append(("Needed", f"{row.num_examples_needed:,}"))
    return {"change": change_of(row), "facts": facts, "why": row.verdict_reason}


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, wraps: bool = False) -> Any:
    """A table of the page; None without rows."""
    rows = list(rows)
    return {"caption": caption, "columns": columns, "rows": rows, "wraps": wraps} if rows else None


def _stages_table(stages: Stages) -> Any:
    """R as figures, for those who do not see its colours."""
    rows = zip(stages.stages, stages.steps, stages.scores_RT, strict=True)
    cells = [(name, f"{step:,}", *map(number, scores_T)) for name, step, scores_T in rows]
    return _table("Score of every task after every stage, share", ("After", "Step", *stages.tasks), cells)


def _stage_measures(stages: Stages) -> list[str]:
    """What is read off R; a mean never without the worst of what it is a mean of."""
    levels = {"Average at the end (ACC)": stages.average_accuracy, "Average over time": stages.average_over_time}
    changes = {
        "Backward transfer (BWT; below 0 is forgetting)": stages.backward_transfer,
        "Forward transfer (FWT, against the base)": stages.forward_transfer,
        "Forgetting, mean of best ever - now": stages.forgetting,
        "Mean change of base abilities": stages.ability_delta,
        f"Worst of them, {stages.worst_ability}": stages.worst_ability_delta,
    }
    lines = [f"{name}: {number(value)}" for name, value in levels.items() if value is not None]
    lines += [f"{name}: {signed(value)}" for name, value in changes.items() if value is not None]
    if stages.forgetting_by_task:
        name, worst = max(sorted(stages.forgetting_by_task.items()), key=lambda item: item[1])
        lines.append(f"Most forgotten since its best, {name}: {signed(worst)}")
    if stages.intransigence is not None:
        lines.append(f"Intransigence by stage: {', '.join(map(signed, stages.intransigence))}")
    return lines


def _drift_table(report: ForgettingReport) -> Any:
    """Means over text, with the loss that worsened most beside them."""
    cells = []
    for one in report.drift:
        texts = [row for row in report.rows if row.group == one.group and row.kind == "text"]
        worst = max(texts, key=lambda row: row.difference)
        cells.append(
            (
                GROUPS[one.group],
                signed(one.delta_nll),
                f"{label(worst)} {signed(worst.difference)}",
                "not measured" if one.kl_nats_per_token is None else number(one.kl_nats_per_token),
                "not measured" if one.top1_agreement is None else share(one.top1_agreement),
            )
        )
    columns = ("Text of", "Loss, nats/token", "Worst of them", "KL from the base, nats/token", "Same most likely token")
    return _table("How far predictions have moved, means over tokens", columns, cells)


def _answers_table(report: ForgettingReport) -> Any:
    """What happened to single answers."""
    columns = ("Measure", "Lost", "Gained", "Lost of what it knew", "Same answer", "Null flips", "Retention")
    cells = [
        (
            label(row),
            *("" if count is None else f"{count:,}" for count in (row.num_lost, row.num_gained)),
            *map(share, (row.conditional_forgetting, row.answer_agreement, row.null_flip_rate)),
            "base at chance" if row.chance is not None and row.retention is None else share(row.retention),
            "" if row.num_unparsed_after is None else f"{row.num_unparsed_before} \u2192 {row.num_unparsed_after}",
        )
        for row in report.rows
        if row.kind != "text"
    ]
    return _table("Right before and wrong now, and the reverse", (*columns, "Unreadable answers"), cells)


def _recovery_table(report: ForgettingReport) -> Any:
    """What a few steps brought back of what was lost: out of reach rather than gone."""
    columns = ("Measure", "Before", "After", "After a few steps", "Came back", "Steps", "Examples")
    cells = [
        (
            one.name,
            *map(number, (one.before, one.after, one.probed)),
            *(share(one.recovered_share), f"{one.num_steps:,}", f"{one.num_examples:,}"),
        )
        for one in report.recovery
    ]
    return _table("What a few steps on a copy of the model brought back", columns, cells)


def _provenance_table(report: ForgettingReport) -> Any:
    cells = [(key, as_text(value)) for key, value in sorted(report.provenance.items())]
    return _table("Where the numbers come from", ("Key", "Value"), cells, wraps=True)


def _methods(report: ForgettingReport) -> str:
    """How each interval was made."""
    methods: dict[str, list[str]] = {}
    for row in report.rows:
        methods.setdefault(row.interval_method, []).append(label(row))
    return "; ".join(f"{method}: {', '.join(labels)}" for method, labels in methods.items())


def _lost_group(row: CapabilityRow) -> dict[str, Any]:
    """The lost examples of one row."""
    counts = f"{len(row.lost)} shown, largest fall first"
    if row.num_lost is not None:
        test = f"{row.p_method} p = {number(row.p_value)}"
        counts = f"{row.num_lost:,} lost, {row.num_gained:,} gained ({test}); {counts}"
    return {"capability": row.capability, "label": label(row), "counts": counts, "examples": row.lost}


def _alternatives(report: ForgettingReport, history: Sequence[HistoryPoint]) -> dict[str, str]:
    """What stands in for each figure where it is not seen: its numbers."""
    told = {}
    rows = [
        f"{label(row)}: {signed(row.difference)} {row.unit} {interval(row)}"
        + (f", margin {number(row.margin)}" if row.verdict is not None else "")
        + f", {row_verdict(row)}"
        for row in report.rows
    ]
    told["forest"] = f"Forest plot. {'; '.join(rows)}."
    if report.stages is not None:
        stages = zip(report.stages.stages, report.stages.scores_RT, strict=True)
        named = [
            f"after {stage}: "
            + ", ".join(f"{task} {number(score)}" for task, score in zip(report.stages.tasks, scores_T, strict=True))
            for stage, scores_T in stages
        ]
        told["stages"] = f"Heat map of scores. {'; '.join(named)}."
    trained = [row for row in report.rows if row.group == "trained"]
    if trained and len(trained) < len(report.rows):
        worst = largest_loss(report.rows)
        gains = [f"{label(row)} {signed(row.difference)} {row.unit} {interval(row)}" for row in trained]
        lost = f"{label(worst)} {signed(worst.difference)} {worst.unit} {interval(worst)}"
        told["learning"] = (
            f"Changes of trained tasks: {'; '.join(gains)}. Base ability that lost most in its margins of "
            f"{number(worst.margin)}: {lost}."
        )
    points = [
        f"step {point.step:,}: "
        + ", ".join(f"{name} {number(value)}" for name, value in point.values.items() if name.startswith("drift/"))
        for point in history
    ]
    told["drift"] = f"Line charts of drift. {'; '.join(points)}."
    return told

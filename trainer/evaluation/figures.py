"""Figures of a report, for report.html and for TensorBoard: matplotlib Figures whose every point is a report's number.

Knows nothing of pages. Without pyplot: no figure is held anywhere. Colours are those of the light page; `svg_of`
hands them to the page's style sheet, so that one drawing fits light and dark. R stages, T tasks.
"""

import io
import itertools
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib.style
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from trainer.evaluation.capability_row import CapabilityRow
from trainer.evaluation.report import ForgettingReport
from trainer.evaluation.report_text import label, number, row_verdict, visible
from trainer.evaluation.stages import Stages

INK, LINE, BAND = "#1a1a1a", "#d0d5dd", "#dfe5ee"
VERDICT_COLOURS = {"REGRESSED": "#b23a00", "INCONCLUSIVE": "#7a5c00", "NON-INFERIOR": "#005ea2"}
MARKERS = {"REGRESSED": "v", "INCONCLUSIVE": "o", "NON-INFERIOR": "s"}
"""A shape for each verdict, beside its colour and its word."""

STYLE_NAMES = {
    **{INK: "var(--ink)", LINE: "var(--line)", BAND: "var(--band)"},
    **{colour: f"var(--{name.lower()})" for name, colour in VERDICT_COLOURS.items()},
}
"""The page's name of each colour."""

SERIES_COLOURS = ("#3b8fd0", "#d9711c", "#1f9d7a", "#c566a0", "#a8820a", "#8a7fe0")
"""Seen on white and on black."""
SERIES_STYLES = ("o-", "s--", "^:", "D-.", "v-")

GAP = 6 * "\u00a0"
"""A browser makes one of several plain spaces."""

FIGURE_WIDTH_INCHES = 7.2
ROW_HEIGHT_INCHES = 0.34
LABEL_CHARACTERS = 30
DARK_CELL = 0.55
"""Scores above it stand on a colour dark enough for white digits."""

DRIFT_MEASURES = {
    "delta_nll": "Loss after - before, nats/token",
    "kl_nats_per_token": "KL from the base, nats/token",
    "top1_agreement": "Same most likely token, share",
}
"""Last part of a name in metrics.jsonl, and what it is."""

SETTINGS = {
    **{"font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "legend.frameon": False},
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **{"text.parse_math": False, "svg.fonttype": "none"},
}


class HistoryPoint(NamedTuple):
    """A measurement while training, by the names of metrics.jsonl."""

    step: int
    values: Mapping[str, float]


@contextmanager
def house_style() -> Iterator[None]:
    """Our settings in place of the user's, while a figure is made or drawn; a text made so is never a formula."""
    with matplotlib.style.context(["default", SETTINGS]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has fonts of its own
        yield


def figures_of(report: ForgettingReport, history: Sequence[HistoryPoint]) -> dict[str, Figure]:
    """Every figure that the report has numbers for, by a name for a page's id or a TensorBoard tag."""
    made = {"forest": forest_plot(report.rows)}
    if report.stages is not None:
        made["stages"] = stage_heat_map(report.stages)
    if {row.group for row in report.rows} == {"trained", "base"}:
        made["learning"] = learning_against_forgetting(report, history)
    if has_drift(history):
        made["drift"] = drift_over_steps(history)
    return made


@house_style()
def forest_plot(rows: Sequence[CapabilityRow]) -> Figure:
    """Differences with their intervals, one panel a group and unit; worse is always to the left.

    Base abilities come first, and have their margin as a band: a loss in it does not matter. Trained tasks have
    panels of their own, since their gains would make margins too narrow to see.
    """
    panels: dict[tuple[str, str, bool], list[CapabilityRow]] = {}
    for row in sorted(rows, key=lambda row: row.group != "base"):
        panels.setdefault((row.group, row.unit, row.higher_is_better), []).append(row)
    heights = [ROW_HEIGHT_INCHES * len(several) + 0.8 for several in panels.values()]
    figure = Figure(figsize=(FIGURE_WIDTH_INCHES, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for place, ((group, unit, higher_is_better), several) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[place])
        _forest_panel(axes, several)
        axes.set_title("Base abilities (band: tolerated loss)" if group == "base" else "Trained tasks")
        axes.set_xlabel(f"\u2190 worse{GAP}Difference, {_clean(unit)}{GAP}better \u2192")
        if not higher_is_better:
            axes.invert_xaxis()
    return figure


def _forest_panel(axes: Axes, rows: Sequence[CapabilityRow]) -> None:
    """The rows from top to bottom, in data coordinates of their unit."""
    for place, row in enumerate(rows):
        shown = row_verdict(row)
        colour = VERDICT_COLOURS["REGRESSED"] if shown == "WORSENED" else VERDICT_COLOURS.get(shown, INK)
        if row.verdict is not None:
            margin = -row.margin if row.higher_is_better else row.margin
            axes.add_patch(Rectangle((0, place - 0.4), margin, 0.8, facecolor=BAND, linewidth=0))
            axes.plot([margin, margin], [place - 0.4, place + 0.4], color=INK, linewidth=0.8, linestyle=":")
        axes.plot([row.interval_low, row.interval_high], [place, place], color=colour, linewidth=2)
        axes.plot([row.difference], [place], MARKERS.get(shown, "o"), color=colour, markersize=6)
        axes.text(1.01, place, shown, transform=axes.get_yaxis_transform(), va="center", color=colour)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_short(label(row)) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.05)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(7))


@house_style()
def stage_heat_map(stages: Stages) -> Figure:
    """Score of every task after every stage; a frame where a task was learnt, a line before the base abilities."""
    order = sorted(range(len(stages.tasks)), key=lambda task: (stages.learnt_in[task] == 0, stages.learnt_in[task]))
    scores_RT = [[row[task] for task in order] for row in stages.scores_RT]
    num_learnt = sum(learnt > 0 for learnt in stages.learnt_in)
    width = max(FIGURE_WIDTH_INCHES, 1.6 + 0.6 * len(order))
    figure = Figure(figsize=(width, 1.7 + 0.42 * len(scores_RT)), layout="constrained")
    axes = figure.add_subplot()
    axes.pcolormesh(scores_RT, cmap=colormaps["Blues"], vmin=0, vmax=1, edgecolors="none")
    for (stage, row), column in itertools.product(enumerate(scores_RT), range(len(order))):
        ink = "#ffffff" if row[column] > DARK_CELL else "#111111"
        axes.text(column + 0.5, stage + 0.5, number(row[column]), ha="center", va="center", color=ink)
    for column, task in enumerate(order):
        if 0 < stages.learnt_in[task] < len(scores_RT):
            frame = Rectangle((column, stages.learnt_in[task]), 1, 1, fill=False)
            frame.set(edgecolor=VERDICT_COLOURS["REGRESSED"], linewidth=1.8)
            axes.add_patch(frame)
    if 0 < num_learnt < len(order):
        axes.axvline(num_learnt, color=INK, linewidth=3)
    axes.set_xticks([column + 0.5 for column in range(len(order))], [_short(stages.tasks[task]) for task in order])
    axes.tick_params(axis="x", rotation=35)
    for tick in axes.get_xticklabels():
        tick.set(ha="right", rotation_mode="anchor")
    steps = zip(stages.stages, stages.steps, strict=True)
    names = [f"{_short(name)}, step {step:,}" for name, step in steps]
    axes.set_yticks([stage + 0.5 for stage in range(len(names))], names)
    axes.set(ylim=(len(names), 0), title="Score after each stage, share (frame: learnt here)")
    axes.tick_params(length=0)
    return figure


def largest_loss(rows: Sequence[CapabilityRow]) -> CapabilityRow:
    """The base row that lost most in units of its margin, in which losses and shares can be compared."""
    return max((row for row in rows if row.group == "base"), key=lambda row: _lost(row.difference, row) / row.margin)


@house_style()
def learning_against_forgetting(report: ForgettingReport, history: Sequence[HistoryPoint] = ()) -> Figure:
    """Where training led: what each trained task gained against what the base ability that lost most has lost.

    One panel a unit of gain; the loss is in units of the ability's margin, 1 being the most that does not matter.
    Each trained task goes from the base model at (0, 0) through the measurements of `history` to the report, where
    its gain has its interval. All of them end at one height, since there is one model; the interval of that height is
    a band. The report needs trained and base rows.
    """
    base = [row for row in report.rows if row.group == "base"]
    worst = largest_loss(base)
    mean = sum(_lost(row.difference, row) / row.margin for row in base) / len(base)
    panels: dict[str, list[CapabilityRow]] = {}
    for row in report.rows:
        if row.group == "trained":
            panels.setdefault(row.unit, []).append(row)
    band = [_lost(end, worst) / worst.margin for end in (worst.interval_low, worst.interval_high)]
    longest = max(map(len, panels.values()))
    figure = Figure(figsize=(FIGURE_WIDTH_INCHES, 4 + 0.17 * longest), layout="constrained")
    several_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (unit, trained) in zip(several_axes, panels.items(), strict=True):
        axes.axhspan(min(band), max(band), facecolor=BAND, linewidth=0, label="95 % interval of the loss")
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.axvline(0, color=LINE, linewidth=0.8)
        axes.axhline(1, color=VERDICT_COLOURS["REGRESSED"], linewidth=1, linestyle="--", label="margin")
        axes.axhline(mean, color=INK, linewidth=1, linestyle=":", label="mean loss of base abilities")
        for place, row in enumerate(trained):
            _path(axes, row, worst=worst, history=history, place=place)
        axes.plot([0], [0], "x", color=INK, label="before training")
        axes.set_xlabel(f"Gain of trained tasks, {_clean(unit)}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8)
    several_axes[0].set_ylabel("Loss in margins (lower is better)")
    figure.suptitle(f"Base ability that lost most: {_short(label(worst))}", fontsize=9.5, fontweight="bold")
    return figure


def _path(axes: Axes, row: CapabilityRow, *, worst: CapabilityRow, history: Sequence[HistoryPoint], place: int) -> None:
    """One trained task: the way, then the end with the interval of its gain."""
    names = (f"learning/{row.name}/difference", f"forgetting/{worst.name}/difference")
    on_the_way = [[point.values[name] for name in names] for point in history if all(n in point.values for n in names)]
    ends = [(0.0, 0.0), *on_the_way, (row.difference, worst.difference)]
    gains = [-_lost(learnt, row) for learnt, _ in ends]
    losses = [_lost(lost, worst) / worst.margin for _, lost in ends]
    colour = SERIES_COLOURS[place % len(SERIES_COLOURS)]
    style = SERIES_STYLES[place % len(SERIES_STYLES)]
    axes.plot(gains, losses, style, color=colour, markersize=3, linewidth=1)
    gain_ends = sorted(-_lost(end, row) for end in (row.interval_low, row.interval_high))
    axes.plot(gain_ends, [losses[-1]] * 2, color=colour, linewidth=1.8)
    axes.plot(gains[-1:], losses[-1:], style[0], color=colour, markersize=7, label=_short(label(row)))


def has_drift(history: Sequence[HistoryPoint]) -> bool:
    """Whether `drift_over_steps` has anything to draw."""
    return any(name.startswith("drift/") for point in history for name in point.values)


@house_style()
def drift_over_steps(history: Sequence[HistoryPoint]) -> Figure:
    """How far predictions have moved, one panel a measure, on text of base abilities and of trained tasks."""
    names = {name for point in history for name in point.values}
    measures = [one for one in DRIFT_MEASURES if names & {f"drift/base/{one}", f"drift/trained/{one}"}]
    figure = Figure(figsize=(FIGURE_WIDTH_INCHES, 3), layout="constrained")
    handles: dict[str, Artist] = {}
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for place, (group, words) in enumerate((("base", "base abilities"), ("trained", "trained tasks"))):
            name = f"drift/{group}/{measure}"
            points = [(point.step, point.values[name]) for point in history if name in point.values]
            if points:
                steps, values = zip(*points, strict=True)
                (handles[words],) = axes.plot(
                    steps, values, SERIES_STYLES[place], color=SERIES_COLOURS[place], markersize=4
                )
        axes.set_title(textwrap.fill(DRIFT_MEASURES[measure], 24))
        axes.set(xlabel="Completed steps")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure


def svg_of(figure: Figure, *, name: str, label: str) -> Markup:
    """The figure as an element of a page whose style sheet has the variables of STYLE_NAMES.

    The same figure gives the same bytes. Ids are made of `name`, so that they differ from another figure's; `label`
    stands in for the picture where it is not seen.
    """
    drawn = io.StringIO()
    with house_style(), matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", facecolor="none", metadata=nothing)
    # What stands before the element belongs to a file of its own; ids of groups are the same in every figure.
    svg = re.sub(r'<g id="[^"]*"', "<g", drawn.getvalue().partition("<svg")[2])
    svg = re.sub("|".join(STYLE_NAMES), lambda found: STYLE_NAMES[found[0]], svg)
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(svg)


def _lost(difference: float, row: CapabilityRow) -> float:
    """A difference of the row's measure as a loss: above 0 is worse."""
    return -difference if row.higher_is_better else difference


def _clean(text: str) -> str:
    """One line that a font can draw."""
    return " ".join(visible(text).split())


def _short(name: str) -> str:
    """One or two lines; the middle of a longer name is left out."""
    name, half = _clean(name), LABEL_CHARACTERS - 2
    kept = name if len(name) <= 2 * LABEL_CHARACTERS else f"{name[:half]}...{name[-half:]}"
    return textwrap.fill(kept, LABEL_CHARACTERS)

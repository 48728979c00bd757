"""The page about a run's data as one HTML file: no scripts, and nothing is loaded from elsewhere.

The same page gives the same bytes. Shapes: K tasks.
"""

import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator

import matplotlib.style
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter
from matplotlib.typing import LineStyleType

from trainer.inspection_page import Page, TaskPart

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito, told apart by colour-blind people too. Their yellow is left out: it is not seen on white."""

LINE_STYLES: tuple[LineStyleType, ...] = ("-", (0, (5, 1.5)), ":", (0, (5, 1.5, 1, 1.5)))
"""Solid; the next ones once all colours are used."""

ASKED_STYLE: LineStyleType = (0, (3, 2))

FIGURE_WIDTH_INCHES = 7.2
PANELS_PER_ROW = 3
PANEL_LINE_CHARACTERS = 30
LEGEND_ROW_CHARACTERS = 72

STAGE_LABEL_WIDTH = 0.12
"""Share of the run that the label of a stage covers; where stages begin closer together, labels stand upright."""

UPRIGHT_LABEL_WIDTH = 0.03
"""Stages that begin closer together share a label."""

CONTROL_PICTURES = tuple((code, 0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r")
"""Characters that no browser shows, and the ones that picture them."""

TASK_COLUMNS: tuple[tuple[str, Callable[[TaskPart], str]], ...] = (
    ("Examples", lambda task: f"{task.summary.num_examples:,}"),
    ("Over-long", lambda task: f"{task.summary.num_overlength:,}"),
    ("Cut", lambda task: f"{task.summary.num_truncated:,}"),
    ("Bad", lambda task: f"{task.summary.num_bad:,}"),
    ("Measured", lambda task: f"{task.num_measured:,}"),
    ("Tokens", lambda task: f"{task.summary.num_tokens:,}"),
    ("Mean", lambda task: f"{round(task.summary.num_tokens / task.summary.num_examples):,}"),
    ("Longest", lambda task: f"{task.summary.longest:,}"),
    ("Trained tokens", lambda task: f"{task.summary.num_targets:,}"),
    ("Draws", lambda task: f"{task.num_draws:,}"),
    ("Each example", lambda task: "streamed" if task.repeats is None else f"{task.repeats:.2f} x"),
)

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Data of the run</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #595959; --line: #d0d0d0; --mark: #ffe08a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e8e8e8; --soft: #a8a8a8; --line: #41454d; --mark: #5c4700; }
}
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 0.5rem; }
h1 { margin-top: 0; }
h3 { font-size: 1rem; }
.soft, caption { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9375rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; }
caption, th, td { white-space: nowrap; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: right; }
tr > :first-child { position: sticky; left: 0; padding-left: 0; background: var(--paper); text-align: left; }
tbody th { white-space: normal; min-width: min(10rem, 35vw); max-width: min(18rem, 35vw); }
figure { margin: 1rem 0; padding: 0.75rem; border: 1px solid var(--line); border-radius: 0.5rem;
  background: #fff; color: #1a1a1a; color-scheme: light; }
figure svg { display: block; width: 100%; min-width: 36rem; height: auto; }
.text { padding: 0.75rem; border: 1px solid var(--line); border-radius: 0.5rem; white-space: pre-wrap;
  font: 0.875rem/1.6 ui-monospace, monospace; tab-size: 4; }
mark.trained { background: var(--mark); color: inherit; padding-bottom: 0.1em; border-bottom: 2px solid; }
</style>
</head>
<body>
{% macro table(caption, columns, rows) %}
<div class="scroll" role="region" aria-label="{{ caption }}" tabindex="0">
<table>
<caption>{{ caption }}</caption>
<thead><tr>{% for title in columns %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, cells in rows %}
<tr><th scope="row">{{ name }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
<main>
<h1>Data of the run</h1>
<p>{{ "{:,}".format(page.num_draws) }} examples, repeats included, in {{ "{:,}".format(page.num_steps) }} \
step{{ "s" if page.num_steps != 1 }}; shares are shares of {{ page.unit }}.</p>

<h2>Tasks</h2>
{{ table("Examples of each task, and how often the run draws them", task_columns, task_rows) }}
{% if page.slots_used is not none %}
<p>Packing: {{ "{:.1%}".format(page.slots_used) }} of the slots of packed rows hold a token.</p>
{% endif %}

<h2>Mixture over the run</h2>
<figure>
<div class="scroll" role="region" aria-label="Figure: Mixture over the run" tabindex="0">{{ mixture_svg }}</div>
<figcaption>Share of each task in {{ page.unit }}: asked, and realised by the order of the examples. \
{{ "Every step asks for the same shares." if page.is_steady else "The shares change over the run." }}\
{% if page.stage_starts|length > 1 %} Stages begin at steps \
{% for start in page.stage_starts %}{{ "{:,}".format(start + 1) }}{{ ", " if not loop.last }}{% endfor %}.\
{% endif %}</figcaption>
</figure>
{{ table("Shares of " ~ page.unit ~ " in parts of the run" ~ ("" if page.is_steady else ", realised of asked"), \
share_columns, share_rows) }}

<h2>Lengths</h2>
<figure>
<div class="scroll" role="region" aria-label="Figure: Lengths" tabindex="0">{{ lengths_svg }}</div>
<figcaption>Examples of each task by their length in tokens.</figcaption>
</figure>

{% if page.examples %}
<h2>Examples as the model sees them</h2>
<p>What is trained is <mark class="legend trained">marked and underlined</mark>.</p>
{% for example in page.examples %}
<section>
<h3>{{ example.task }}: {{ example.example_id }} \
<span class="soft">({{ "{:,}".format(example.num_tokens) }} tokens)</span></h3>
<div class="text" dir="auto">
{%- for piece, is_trained in example.pieces -%}
{%- if is_trained -%}<mark class="trained">{{- piece|exact -}}</mark>{%- else -%}{{- piece|exact -}}{%- endif -%}
{%- endfor -%}
</div>
</section>
{% endfor %}
{% endif %}
{% if page.notes %}
<h2>Notes</h2>
<ul>
{% for note in page.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
</main>
</body>
</html>
"""


def html_page(page: Page) -> str:
    """Tasks, the mixture over time, lengths, and examples with their trained parts marked."""
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template.filters["exact"] = _exact
    shares = f"Line chart of the shares of {page.unit} asked and realised over the run; the table below has the numbers"
    lengths = "Histograms of the lengths of examples in tokens, one for each task"
    share_columns, share_rows = _shares(page)
    text = template.from_string(TEMPLATE).render(
        page=page,
        task_columns=("Task", *(title for title, _ in TASK_COLUMNS)),
        task_rows=[(task.name, [cell(task) for _, cell in TASK_COLUMNS]) for task in page.tasks],
        mixture_svg=_drawn(mixture_figure, page, name="mixture", label=shares),
        share_columns=share_columns,
        share_rows=share_rows,
        lengths_svg=_drawn(lengths_figure, page, name="lengths", label=lengths),
    )
    # An id out of a JSON file may hold half of a surrogate pair, which no file in UTF-8 can.
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def mixture_figure(page: Page) -> Figure:
    """Share of each task over the steps: asked dashed and darker, realised solid."""
    names = [_short(task.name, LEGEND_ROW_CHARACTERS // 2) for task in page.tasks]
    entries_per_row = max(2, min(5, LEGEND_ROW_CHARACTERS // (4 + max(map(len, names)))))
    legend_rows = math.ceil((len(names) + 2) / entries_per_row)
    figure = Figure(figsize=(FIGURE_WIDTH_INCHES, 3.4 + 0.2 * legend_rows), layout="constrained")
    axes = figure.add_subplot()
    edges = [0, *(window.end_step for window in page.windows)]
    handles = []
    for number, (colour, style) in enumerate(_lines(len(names))):
        darker = tuple(0.6 * part for part in to_rgb(colour))
        realised = [window.realised_K[number] for window in page.windows]
        asked = [window.asked_K[number] for window in page.windows]
        axes.stairs(realised, edges, baseline=None, color=colour, linestyle=style, linewidth=1.6)
        axes.stairs(asked, edges, baseline=None, color=darker, linestyle=ASKED_STYLE, linewidth=1, zorder=3)
        handles.append(Line2D([], [], color=colour, linestyle=style, linewidth=1.6))
    handles += [Line2D([], [], color="#777777", linewidth=1.6), Line2D([], [], color="#333333", linestyle=ASKED_STYLE)]
    figure.legend(handles, [*names, "realised", "asked"], loc="outside lower center", ncols=entries_per_row)
    axes.set(xlabel="Completed steps", ylabel=f"Share of {page.unit}", xlim=(0, page.num_steps), ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(page.stage_starts) > 1:
        _mark_stages(axes, page)
    return figure


def lengths_figure(page: Page) -> Figure:
    """A histogram of each task."""
    num_rows = math.ceil(len(page.tasks) / PANELS_PER_ROW)
    figure = Figure(figsize=(FIGURE_WIDTH_INCHES, 1.9 * num_rows), layout="constrained")
    for number, task in enumerate(page.tasks, start=1):
        axes = figure.add_subplot(num_rows, PANELS_PER_ROW, number)
        edges = task.lengths.edges
        widths = [high - low for low, high in itertools.pairwise(edges)]
        axes.bar(edges[:-1], task.lengths.counts, widths, align="edge", color=COLOURS[0])
        title = _short(task.name, 2 * PANEL_LINE_CHARACTERS)
        axes.set_title(textwrap.fill(title, PANEL_LINE_CHARACTERS), loc="left")
        axes.set(xlabel="Tokens", ylabel="Examples" if number % PANELS_PER_ROW == 1 else "")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def _lines(number: int) -> Iterator[tuple[str, LineStyleType]]:
    """Colour and line style of each task."""
    for task in range(number):
        yield COLOURS[task % len(COLOURS)], LINE_STYLES[task // len(COLOURS) % len(LINE_STYLES)]


def _mark_stages(axes: Axes, page: Page) -> None:
    """A line where each stage but the first begins, and the names of all of them above."""
    groups: list[list[int]] = []
    for number, start in enumerate(page.stage_starts):
        if groups and start - page.stage_starts[groups[-1][0]] < UPRIGHT_LABEL_WIDTH * page.num_steps:
            groups[-1].append(number)
        else:
            groups.append([number])
        if number:
            axes.axvline(start, color="#555555", linewidth=0.8)
    starts = [page.stage_starts[group[0]] for group in groups]
    labels = [f"stage {g[0] + 1}" if len(g) == 1 else f"stages {g[0] + 1}-{g[-1] + 1}" for g in groups]
    narrowest = min(end - start for start, end in itertools.pairwise([*starts, page.num_steps]))
    names = axes.secondary_xaxis("top")
    if narrowest < STAGE_LABEL_WIDTH * page.num_steps:
        names.set_xticks(starts, labels, rotation=90)
    else:
        names.set_xticks(starts, labels, ha="left")
    names.tick_params(length=0)


def _short(name: str, most: int) -> str:
    """Without its middle where it is too long."""
    half = (most - 3) // 2
    return name if len(name) <= most else f"{name[:half]}...{name[-half:]}"


def _drawn(figure: Callable[[Page], Figure], page: Page, *, name: str, label: str) -> Markup:
    """A figure as an element of the page. Its ids are made of `name`, so that they differ from another figure's."""
    settings = {
        **{"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False},
        **{"font.size": 9, "axes.titlesize": 9, "legend.frameon": False, "legend.handlelength": 3},
        **{"axes.spines.top": False, "axes.spines.right": False},
    }
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has fonts of its own
        drawn = io.StringIO()
        figure(page).savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # What stands before the element belongs to a file of its own; ids of groups are the same in every figure.
    svg = re.sub(r'<g id="[^"]*"', "<g", drawn.getvalue().partition("<svg")[2])
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(svg)


def _shares(page: Page) -> tuple[tuple[str, ...], list[tuple[str, list[str]]]]:
    """Headings and rows: the share asked, and realised in each quarter; both for each quarter where they change."""
    steps = [0, *(window.end_step for window in page.quarters)]
    spans = [f"Steps {start + 1:,}-{end:,}" for start, end in itertools.pairwise(steps)]
    rows = []
    for number, task in enumerate(page.tasks):
        pairs = [(window.realised_K[number], window.asked_K[number]) for window in page.quarters]
        if page.is_steady:
            cells = [f"{pairs[0][1]:.2%}", *(f"{realised:.2%}" for realised, _ in pairs)]
        else:
            cells = [f"{realised:.1%} of {asked:.1%}" for realised, asked in pairs]
        rows.append((task.name, cells))
    return ("Task", *(["Asked"] if page.is_steady else []), *spans), rows


def _exact(text: str) -> Markup:
    """Text that a browser shows as it is: a carriage return in a file would be read as a newline."""
    return Markup(str(escape(text.translate(dict(CONTROL_PICTURES)))).replace("\r", "&#13;"))

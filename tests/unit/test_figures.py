"""Figures of a report: what is drawn where, in data coordinates, and which side is worse."""

import io
import math
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from tests import report_rows
from trainer.evaluation.capability_row import CapabilityRow
from trainer.evaluation.continual import ContinualMatrix
from trainer.evaluation.figures import (
    STYLE_NAMES,
    VERDICT_COLOURS,
    HistoryPoint,
    drift_over_steps,
    figures_of,
    forest_plot,
    has_drift,
    largest_loss,
    learning_against_forgetting,
    stage_heat_map,
    svg_of,
)
from trainer.evaluation.report import ForgettingReport, build_report
from trainer.evaluation.stages import Stages, read_off

PROSE = replace(report_rows.PROSE, before=4.5, after=4.6, difference=0.1, interval_low=0.08, interval_high=0.13)
QUIZ = replace(report_rows.QUIZ, capability="quiz")
REVIEWS = replace(QUIZ, name="reviews", group="trained", difference=0.3, interval_low=0.2, interval_high=0.35)
REVIEWS = replace(REVIEWS, change="improved")
REVIEWS_LOSS = replace(PROSE, name="reviews-loss", capability="reviews", group="trained", difference=-2.0)
REVIEWS_LOSS = replace(REVIEWS_LOSS, interval_low=-2.5, interval_high=-1.75, change="improved")
MATRIX = ContinualMatrix(
    stages=("base", "stage 1", "stage 2"),
    tasks=("quiz", "summaries", "reviews"),
    learnt_in=(0, 2, 1),
    scores_RT=((0.9, 0.1, 0.2), (0.85, 0.15, 0.95), (0.8, 0.7, 0.6)),
)
HISTORY = [
    HistoryPoint(10, {"learning/reviews/difference": 0.1, "forgetting/prose/difference": 0.02}),
    HistoryPoint(20, {"learning/reviews/difference": 0.2, "drift/base/kl_nats_per_token": 0.3}),
    HistoryPoint(30, {"drift/base/kl_nats_per_token": 0.5, "drift/trained/kl_nats_per_token": 2.0}),
]


def report_of(*rows: CapabilityRow, stages: Stages | None = None) -> ForgettingReport:
    return build_report(rows, provenance={}, stages=stages)


def stages() -> Stages:
    return read_off(MATRIX, steps=(0, 50, 100))


REPORT = report_of(PROSE, QUIZ, REVIEWS, REVIEWS_LOSS)


def lines(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [(list(np.asarray(line.get_xdata())), list(np.asarray(line.get_ydata()))) for line in axes.lines]


def boxes(axes: Axes) -> list[tuple[float, float]]:
    """Left and right end of each rectangle."""
    return [tuple(sorted((p.get_x(), p.get_x() + p.get_width()))) for p in axes.patches if isinstance(p, Rectangle)]


def is_left_of(axes: Axes, one: float, other: float) -> bool:
    (left, _), (right, _) = axes.transData.transform([(one, 0), (other, 0)])
    return bool(left < right)


def test_margins_lie_on_the_worse_side_which_is_always_left() -> None:
    losses, shares = forest_plot(REPORT.rows).axes[:2]
    assert boxes(losses) == [(0, 0.05)]  # a loss gets worse by rising
    assert boxes(shares) == [(-0.02, 0)]
    assert is_left_of(losses, 0.05, 0)
    assert is_left_of(shares, -0.02, 0)


def test_every_difference_is_drawn_with_its_interval_and_its_verdict() -> None:
    losses, shares, *_ = forest_plot(REPORT.rows).axes
    assert ([0.08, 0.13], [0, 0]) in lines(losses)
    assert ([0.1], [0]) in lines(losses)
    assert ([-0.03, 0.04], [0, 0]) in lines(shares)
    assert [text.get_text() for text in losses.texts] == ["REGRESSED"]
    assert [text.get_text() for text in shares.texts] == ["INCONCLUSIVE"]


def test_each_group_and_unit_has_a_panel_and_trained_tasks_have_no_margin() -> None:
    panels = forest_plot(REPORT.rows).axes
    assert [[tick.get_text() for tick in axes.get_yticklabels()] for axes in panels] == [
        ["prose"],
        ["quiz"],
        ["quiz (reviews)"],
        ["reviews (reviews-loss)"],
    ]
    assert [len(boxes(axes)) for axes in panels] == [1, 1, 0, 0]
    assert is_left_of(panels[3], 0, -2.0)  # a falling loss is better


def test_rows_stand_from_top_to_bottom() -> None:
    axes = forest_plot(report_of(QUIZ, replace(QUIZ, name="facts"), replace(QUIZ, name="sums")).rows).axes[0]
    (_, first), (_, last) = axes.transData.transform([(0, 0), (0, 2)])
    assert first > last
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["quiz", "quiz (facts)", "quiz (sums)"]


def test_verdicts_differ_in_shape_and_colour() -> None:
    kept = replace(QUIZ, name="kept", interval_low=-0.01)
    lost = replace(QUIZ, name="lost", difference=-0.1, interval_low=-0.2, interval_high=-0.05, p_value=1e-9)
    axes = forest_plot(report_of(QUIZ, kept, lost).rows).axes[0]
    drawn = {(line.get_marker(), line.get_color()) for line in axes.lines if len(np.asarray(line.get_xdata())) == 1}
    assert {colour for _, colour in drawn} == set(VERDICT_COLOURS.values())
    assert len({marker for marker, _ in drawn}) == 3


def test_the_heat_map_puts_learnt_tasks_first_and_its_line_before_base_abilities() -> None:
    axes = stage_heat_map(stages()).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["reviews", "summaries", "quiz"]
    assert ([2, 2], [0, 1]) in lines(axes)  # two learnt tasks, then one base ability
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert len(axes.texts) == 9
    assert places["0.6"] == (0.5, 2.5)  # reviews after the last stage
    assert places["0.9"] == (2.5, 0.5)  # quiz of the base
    assert axes.yaxis_inverted()


def test_the_heat_map_frames_each_task_where_it_was_learnt() -> None:
    frames = [p for p in stage_heat_map(stages()).axes[0].patches if isinstance(p, Rectangle)]
    assert [(frame.get_x(), frame.get_y()) for frame in frames] == [(0, 1), (1, 2)]


def test_losses_are_compared_in_margins() -> None:
    # prose: 0.1 / 0.05 = 2 margins.  facts: 0.06 / 0.02 = 3.  A trained task does not count.
    facts = replace(QUIZ, name="facts", difference=-0.06)
    ruined = replace(REVIEWS, difference=-0.9)
    assert largest_loss([PROSE, QUIZ, ruined]).name == "prose"
    assert largest_loss([PROSE, facts, ruined]).name == "facts"


def test_learning_ends_at_the_gain_and_at_the_largest_loss_in_margins() -> None:
    shares, losses = learning_against_forgetting(REPORT, HISTORY).axes
    # From (0, 0) by step 10 (0.1, 0.02 / 0.05 = 0.4; step 20 lacks the loss) to (0.3, 0.1 / 0.05 = 2).
    ((gains, losses_in_margins),) = [way for way in lines(shares) if len(way[0]) == 3]
    assert gains == pytest.approx([0, 0.1, 0.3])
    assert losses_in_margins == pytest.approx([0, 0.4, 2.0])
    assert ([0.2, 0.35], [2.0, 2.0]) in lines(shares)
    assert ([1.75, 2.5], [2.0, 2.0]) in lines(losses)  # a gain of a loss is its fall
    band = next(p for p in shares.patches if isinstance(p, Rectangle))
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.08 / 0.05, 0.13 / 0.05))


def test_the_mean_loss_is_drawn_beside_the_worst_one() -> None:
    axes = learning_against_forgetting(REPORT).axes[0]
    # Losses in margins: prose 0.1 / 0.05 = 2, quiz -0.01 / 0.02 = -0.5; mean 0.75.
    (mean,) = [line for line in axes.lines if "mean" in str(line.get_label())]
    assert list(np.asarray(mean.get_ydata())) == pytest.approx([0.75, 0.75])


def test_drift_is_drawn_at_the_steps_where_it_was_measured() -> None:
    (axes,) = drift_over_steps(HISTORY).axes
    assert lines(axes) == [([20, 30], [0.3, 0.5]), ([30], [2.0])]
    assert "KL" in axes.get_title(loc="left")
    assert has_drift(HISTORY)
    assert not has_drift(HISTORY[:1])


def test_a_report_has_the_figures_that_it_has_numbers_for() -> None:
    assert list(figures_of(REPORT, [])) == ["forest", "learning"]
    assert list(figures_of(report_of(PROSE), HISTORY)) == ["forest", "drift"]
    whole = report_of(PROSE, REVIEWS, stages=stages())
    assert list(figures_of(whole, HISTORY)) == ["forest", "stages", "learning", "drift"]


def test_names_of_any_kind_are_drawn_as_they_are_also_by_tensorboard() -> None:
    odd = [replace(PROSE, name="a", capability="$x^2 \\frac$ \x00\ud83d\n <b>"), replace(REVIEWS, name="$\\bad$")]
    figures = figures_of(report_of(*odd, replace(PROSE, name="\u7ffb\u8bd1" * 40)), HISTORY)
    for figure in figures.values():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            FigureCanvasAgg(figure).draw()  # what TensorBoard does, with the settings of the day
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            svg = svg_of(figure, name="odd", label='"<script>')
        assert "<b>" not in svg
        assert "<script>" not in svg
    ticks = forest_plot(report_of(*odd).rows).axes[0].get_yticklabels()
    assert ticks[0].get_text() == "$x^2 \\frac$ \\x00\\ud83d <b> (a)"


def test_drawing_is_deterministic_and_leaves_no_setting_behind() -> None:
    first = svg_of(forest_plot(REPORT.rows), name="forest", label="")
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other"}):
        assert svg_of(forest_plot(REPORT.rows), name="forest", label="") == first
        assert matplotlib.rcParams["font.size"] == 30
    assert svg_of(forest_plot(REPORT.rows), name="other", label="") != first


def test_the_style_sheet_chooses_the_colours_and_nothing_is_a_bitmap() -> None:
    figures = figures_of(report_of(PROSE, QUIZ, REVIEWS, stages=stages()), HISTORY)
    drawn = "".join(svg_of(figure, name=name, label="") for name, figure in figures.items())
    assert not [colour for colour in STYLE_NAMES if colour in drawn]
    assert {name for name in STYLE_NAMES.values() if name in drawn} >= {"var(--ink)", "var(--band)", "var(--regressed)"}
    assert "<image" not in drawn


def test_a_figure_fits_a_page_whatever_the_number_of_rows() -> None:
    many = [replace(QUIZ, name=f"quiz {number}") for number in range(40)]
    few, tall = forest_plot([QUIZ]), forest_plot(many)
    assert few.get_figwidth() == tall.get_figwidth()
    assert math.isclose(tall.get_figheight() - few.get_figheight(), 39 * 0.34)
    tall.savefig(io.BytesIO(), format="svg")


def test_a_standstill_without_width_is_drawn_without_a_warning() -> None:
    still = {"difference": 0.0, "interval_low": 0.0, "interval_high": 0.0, "change": "no clear change"}
    report = report_of(replace(QUIZ, **still), replace(REVIEWS, **still), replace(REVIEWS_LOSS, **still))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, figure in figures_of(report, []).items():
            svg_of(figure, name=name, label="")
    gain_axes, _ = learning_against_forgetting(report).axes
    assert ([0, 0], [0, 0]) in lines(gain_axes)

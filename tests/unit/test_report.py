"""The report: its two answers, its bytes, and that no text of an example can break its markdown."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config.errors import DataError
from trainer.evaluation.forgetting import CapabilityRow, LostExample
from trainer.evaluation.report import (
    TABLE_COLUMNS,
    ForgettingReport,
    build_report,
    read_report,
    render_markdown,
    table_rows,
    write_report,
)

PROSE = CapabilityRow(
    name="prose",
    capability="prose",
    group="base",
    kind="text",
    measure="loss",
    unit="nats/token",
    higher_is_better=False,
    num_examples=400,
    before=4.5204,
    after=4.9301,
    difference=0.4097,
    interval_low=0.3801,
    interval_high=0.4399,
    interval_method="normal (delta method)",
    change="worsened",
    num_lost=None,
    num_gained=None,
    mcnemar_p=None,
    lost=(),
)
QUIZ = replace(
    PROSE,
    name="quiz",
    capability="general knowledge",
    kind="generate",
    measure="exact match",
    unit="share",
    higher_is_better=True,
    num_examples=200,
    before=0.5,
    after=0.495,
    difference=-0.005,
    interval_low=-0.035,
    interval_high=0.02,
    interval_method="BCa bootstrap",
    change="no clear change",
    num_lost=5,
    num_gained=4,
    mcnemar_p=1.0,
    lost=(LostExample(prompt="Capital of Peru?", target="Lima", answer_before="Lima", answer_after=""),),
)
REVIEWS = replace(
    QUIZ,
    name="reviews",
    capability="reviews",
    group="trained",
    measure="accuracy",
    before=0.5,
    after=0.75,
    difference=0.25,
    interval_low=0.18,
    interval_high=0.32,
    change="improved",
    num_lost=0,
    num_gained=50,
    mcnemar_p=1.7763568394002505e-15,
    lost=(),
)
PROVENANCE = {"commit": "abc123", "config_sha256": "f00d", "seed": 0, "step": 100, "versions": {"torch": "2", "b": "1"}}


def report_of(*rows: CapabilityRow) -> ForgettingReport:
    return build_report(rows, provenance=PROVENANCE)


def headline(*rows: CapabilityRow) -> str:
    title, answer = render_markdown(report_of(*rows)).split("\n\n")[:2]
    assert title == "# What was learnt, what was forgotten"
    return answer


def test_the_report_names_what_was_forgotten_and_puts_trained_tasks_first() -> None:
    report = report_of(QUIZ, PROSE, REVIEWS)
    assert (report.forgotten, report.worst_base) == (("prose",), "prose")
    assert [row.name for row in report.rows] == ["reviews", "quiz", "prose"]


def test_the_worst_base_ability_is_the_largest_worsening_in_half_intervals() -> None:
    # fable: 0.004 / 0.001 = 4.  prose: 0.4097 / 0.0299 = 13.7.  harm: better.  A trained task does not count.
    fable = replace(PROSE, name="fable", difference=0.004, interval_low=0.003, interval_high=0.005)
    harm = replace(QUIZ, name="harm", difference=0.3, interval_low=0.2, interval_high=0.4, change="improved")
    ruined = replace(REVIEWS, difference=-0.5, interval_low=-0.501, interval_high=-0.499, change="worsened")
    assert report_of(fable, PROSE, harm, ruined).worst_base == "prose"
    assert report_of(fable, harm, ruined).worst_base == "fable"
    assert report_of(harm, ruined).worst_base == "harm"
    assert report_of(ruined).worst_base is None


def test_a_worsening_without_width_is_the_worst_and_a_standstill_is_worse_than_an_improvement() -> None:
    exact = replace(PROSE, name="exact", difference=0.001, interval_low=0.001, interval_high=0.001)
    still = replace(PROSE, name="still", difference=0.0, interval_low=0.0, interval_high=0.0, change="no clear change")
    better = replace(PROSE, name="better", difference=-0.1, interval_low=-0.1, interval_high=-0.1, change="improved")
    assert report_of(PROSE, exact, still).worst_base == "exact"
    assert report_of(better, still).worst_base == "still"


def test_a_worsened_row_is_worse_than_one_that_is_not_however_lopsided_its_interval() -> None:
    # lopsided: 0.1 / 0.2 = 0.5 half intervals, yet its interval excludes zero.  unclear: 0.9 half intervals.
    lopsided = replace(PROSE, name="lopsided", difference=0.1, interval_low=0.01, interval_high=0.41)
    unclear = replace(
        PROSE, name="unclear", difference=0.09, interval_low=-0.01, interval_high=0.19, change="no clear change"
    )
    assert report_of(unclear, lopsided).worst_base == "lopsided"


def test_the_headline_tells_what_was_forgotten_with_its_interval() -> None:
    assert headline(PROSE, QUIZ, REVIEWS) == (
        "**Learnt: 1 of 1 trained tasks improved. "
        "Forgotten: prose (loss 4.52 -> 4.93 nats/token, +0.41 [0.38, 0.44]).** Worst base ability: prose."
    )


def test_the_headline_never_takes_an_unclear_change_for_proof() -> None:
    assert headline(QUIZ, REVIEWS) == (
        "**Learnt: 1 of 1 trained tasks improved. No base ability worsened beyond its interval** "
        "(this is not proof that none did: for general knowledge (quiz) the interval allows a worsening of up to "
        "0.035 share). Worst base ability: general knowledge (exact match 0.5 -> 0.495 share, "
        "-0.005 [-0.035, 0.02])."
    )


def test_the_headline_says_that_a_trained_task_worsened() -> None:
    worse = replace(REVIEWS, name="other", change="worsened")
    assert headline(REVIEWS, worse, QUIZ).startswith("**Learnt: 1 of 2 trained tasks improved, 1 WORSENED. No base")


def test_the_headline_says_when_a_group_was_not_measured() -> None:
    assert "No base ability was measured: what was forgotten is unknown." in headline(REVIEWS)
    assert headline(QUIZ).startswith("**No trained task was measured. No base ability worsened")


def test_table_rows_are_plain_text_in_the_order_of_the_rows() -> None:
    quiz = ("0.5", "0.495", "-0.005", "[-0.035, 0.02]", "no clear change")
    assert len(TABLE_COLUMNS) == 8
    assert table_rows(report_of(PROSE, QUIZ, REVIEWS)) == [
        ("reviews", "accuracy (share)", "200", "0.5", "0.75", "+0.25", "[0.18, 0.32]", "improved"),
        ("prose", "loss (nats/token)", "400", "4.52", "4.93", "+0.41", "[0.38, 0.44]", "WORSENED"),
        ("general knowledge", "exact match (share)", "200", *quiz),
    ]


def test_numbers_have_three_significant_digits_and_no_exponent_when_large() -> None:
    values = (0.0, -0.0, 1.0, 0.12345, -2.0061, 12.345, 999.4, 999.6, 123456.7)
    shown = [table_rows(report_of(replace(PROSE, before=value)))[0][3] for value in values]
    assert shown == ["0", "0", "1", "0.123", "-2.01", "12.3", "999", "1000", "123457"]


def test_the_markdown_splits_the_table_by_group() -> None:
    text = render_markdown(report_of(QUIZ, REVIEWS))
    head = (
        "| Capability | Measure | n | Before | After | Difference | 95 % interval | Verdict |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    trained = "| reviews | accuracy (share) | 200 | 0.5 | 0.75 | +0.25 | [0.18, 0.32] | improved |\n"
    base = "| general knowledge | exact match (share) | 200 | 0.5 | 0.495 | -0.005 | [-0.035, 0.02] |"
    assert f"## Trained tasks\n\n{head}{trained}\n## Base abilities\n\n{head}{base} no clear change |\n\n" in text


def test_the_markdown_says_how_to_read_an_unclear_change_and_names_the_methods() -> None:
    text = render_markdown(report_of(PROSE, QUIZ, REVIEWS))
    assert '"no clear change" means that the interval includes zero: a change was not shown, which is not' in text
    assert "BCa bootstrap: reviews, general knowledge (quiz); normal (delta method): prose." in text


def test_lost_examples_are_folded_and_an_empty_answer_is_shown() -> None:
    assert (
        "## Lost examples\n\n"
        "<details>\n"
        "<summary>general knowledge (quiz): 5 lost, 4 gained (exact McNemar p = 1), 1 shown</summary>\n\n"
        "**Example 1**\n\n"
        "Prompt:\n\n```text\nCapital of Peru?\n```\n\n"
        "Target:\n\n```text\nLima\n```\n\n"
        "Answer before:\n\n```text\nLima\n```\n\n"
        "Answer after:\n\n```text\n(empty)\n```\n\n"
        "</details>\n\n"
    ) in render_markdown(report_of(QUIZ))
    assert "Lost examples" not in render_markdown(report_of(PROSE))
    graded = render_markdown(report_of(replace(QUIZ, num_lost=None, num_gained=None, mcnemar_p=None)))
    assert "<summary>general knowledge (quiz): 1 shown, largest fall first</summary>" in graded


def test_the_provenance_is_a_table_sorted_by_key() -> None:
    assert render_markdown(report_of(QUIZ)).endswith(
        "## Provenance\n\n"
        "| Key | Value |\n"
        "| --- | --- |\n"
        "| commit | abc123 |\n"
        "| config_sha256 | f00d |\n"
        "| seed | 0 |\n"
        "| step | 100 |\n"
        '| versions | {"b": "1", "torch": "2"} |\n'
    )


@pytest.mark.parametrize(
    ("capability", "cell"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("a\nb\r\nc\rd", "a b c d"),
        ("`a`", r"\`a\`"),
        ("*a* ~b~", r"\*a\* \~b\~"),
        ("_a_ b_c", r"\_a\_ b_c"),
        ("<b>&amp;", "&lt;b>&amp;amp;"),
        ("![a](http://x)", r"![a\](http://x)"),
        ("a\u2028b\x1b\u202ec", r"a\\u2028b\\x1b\\u202ec"),
    ],
)
def test_no_text_of_a_cell_is_markup(capability: str, cell: str) -> None:
    row = replace(QUIZ, name="n", capability=capability)
    assert f"\n| {cell} | exact match (share) | 200 |" in render_markdown(report_of(row))


def test_an_example_cannot_close_its_code_block() -> None:
    nasty = LostExample(prompt="a\n````\n</details>\n# b", target="`", answer_before=None, answer_after="x\r\ny\ud800")
    text = render_markdown(report_of(replace(QUIZ, lost=(nasty,))))
    assert "Prompt:\n\n`````text\na\n````\n</details>\n# b\n`````\n\n" in text
    assert "Target:\n\n```text\n`\n```\n\n" in text
    assert "Answer before" not in text
    assert "Answer after:\n\n```text\nx\ny\\ud800\n```\n\n" in text


def test_a_long_example_keeps_its_two_ends() -> None:
    # 301 + 700 characters; 300 are kept at each end: 401 are left out.
    long = LostExample(prompt="a" * 301 + "b" * 700, target="t", answer_before=None, answer_after=None)
    text = render_markdown(report_of(replace(QUIZ, lost=(long,))))
    assert f"```text\n{'a' * 300}\n[... 401 characters left out ...]\n{'b' * 300}\n```" in text


def test_a_report_is_read_back_equal(tmp_path: Path) -> None:
    report = report_of(PROSE, QUIZ, REVIEWS)
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert render_markdown(read_report(tmp_path)) == render_markdown(report)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == render_markdown(report)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_the_same_report_gives_the_same_bytes_whatever_the_order_of_the_provenance(tmp_path: Path) -> None:
    for folder, provenance in (("a", PROVENANCE), ("b", dict(reversed(PROVENANCE.items())))):
        write_report(tmp_path / folder, build_report([QUIZ], provenance=provenance))
    for name in ("report.json", "report.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    raw = json.loads((tmp_path / "a" / "report.json").read_text(encoding="utf-8"))
    assert list(raw) == ["forgotten", "provenance", "rows", "schema_version", "worst_base"]
    assert raw["rows"][0]["lost"][0]["prompt"] == "Capital of Peru?"


def test_a_report_without_rows_or_with_a_name_twice_or_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="got: none"):
        report_of()
    with pytest.raises(ValueError, match="got: quiz, quiz"):
        report_of(QUIZ, QUIZ)
    with pytest.raises(ValueError, match="not JSON compliant"):
        build_report([QUIZ], provenance={"loss": math.nan})


def test_a_missing_report_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json: cannot be read \(No such file"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version": 1', '"schema_version": 2', "schema_version is 2, 1 is needed"),
        ('"num_lost"', '"num_gone"', "not a report of schema 1"),
        ('"target"', '"aim"', "not a report of schema 1"),
        ('"worst_base"', '"worst"', "not a report of schema 1"),
        ("{", "[", "not JSON"),
    ],
)
def test_a_report_of_another_shape_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_report(tmp_path, report_of(QUIZ))
    path = tmp_path / "report.json"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=rf"report\.json: {message}.* Make the report again\."):
        read_report(tmp_path)

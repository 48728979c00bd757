"""The report for people: its headline, its tables, and that no text of an example can break its markdown."""

from dataclasses import replace

import pytest

from tests.unit.test_report import PROSE, QUIZ, REVIEWS, STAGES, report_of
from trainer.evaluation.capability_row import CapabilityRow, LostExample
from trainer.evaluation.report import build_report
from trainer.evaluation.report_text import TABLE_COLUMNS, render_markdown, table_rows


def headline(*rows: CapabilityRow) -> str:
    title, answer = render_markdown(report_of(*rows)).split("\n\n")[:2]
    assert title == "# What was learnt, what was forgotten"
    return answer


STRICT = replace(QUIZ, name="strict", capability="strict", margin=0.03)


def test_the_headline_tells_every_verdict_and_the_worst_row_with_its_interval() -> None:
    assert headline(QUIZ, STRICT, PROSE, REVIEWS) == (
        "**Learnt: 1 of 1 trained tasks improved. Base abilities: REGRESSED (REGRESSED: prose; INCONCLUSIVE: strict; "
        "NON-INFERIOR: general knowledge). Worst: prose (loss 4.52 -> 4.93 nats/token, +0.41 [0.38, 0.44]).**"
    )


def test_the_headline_never_takes_an_unclear_change_for_proof() -> None:
    assert headline(STRICT, REVIEWS) == (
        "**Learnt: 1 of 1 trained tasks improved. Base abilities: INCONCLUSIVE (INCONCLUSIVE: strict). "
        "Worst: strict (exact match 0.5 -> 0.495 share, -0.005 [-0.035, 0.02]).**"
    )
    assert headline(QUIZ).endswith(
        "Base abilities: NON-INFERIOR (NON-INFERIOR: general knowledge). "
        "Worst: general knowledge (quiz) (exact match 0.5 -> 0.495 share, -0.005 [-0.035, 0.02]).**"
    )


def test_the_headline_says_that_a_trained_task_worsened() -> None:
    worse = replace(REVIEWS, name="other", change="worsened")
    assert headline(REVIEWS, worse, QUIZ).startswith("**Learnt: 1 of 2 trained tasks improved, 1 WORSENED. Base")


def test_the_headline_says_when_a_group_was_not_measured() -> None:
    assert "No base ability was measured: what was forgotten is unknown." in headline(REVIEWS)
    assert headline(QUIZ).startswith("**No trained task was measured. Base abilities: NON-INFERIOR")


def test_table_rows_are_plain_text_in_the_order_of_the_rows() -> None:
    quiz = ("0.5", "0.495", "-0.005", "[-0.035, 0.02]", "NON-INFERIOR")
    assert len(TABLE_COLUMNS) == 8
    assert table_rows(report_of(PROSE, QUIZ, REVIEWS)) == [
        ("reviews", "accuracy (share)", "200", "0.5", "0.75", "+0.25", "[0.18, 0.32]", "improved"),
        ("prose", "loss (nats/token)", "400", "4.52", "4.93", "+0.41", "[0.38, 0.44]", "REGRESSED"),
        ("general knowledge", "exact match (share)", "200", *quiz),
    ]
    assert table_rows(report_of(replace(REVIEWS, change="worsened")))[0][-1] == "WORSENED"


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
    assert f"## Trained tasks\n\n{head}{trained}\n## Base abilities\n\n{head}{base} NON-INFERIOR |\n\n" in text


def test_the_markdown_says_how_to_read_an_unclear_change_and_names_the_methods() -> None:
    text = render_markdown(report_of(PROSE, QUIZ, REVIEWS))
    assert '"no clear change" means that the interval includes zero: a change was not shown, which is not' in text
    assert "score (Tango): reviews, general knowledge (quiz); skewness-corrected t: prose." in text


def test_each_verdict_stands_with_its_margin_its_reason_and_what_more_data_would_tell() -> None:
    text = render_markdown(report_of(STRICT, PROSE, REVIEWS))
    table = text.split("## Verdicts\n\n")[1].split("\n\n")[0].splitlines()
    assert table[0] == ("| Capability | Verdict | Margin | Why | Holm p | Smallest change to be found | n needed |")
    assert [row.split(" | ")[0] for row in table[2:]] == ["| strict", "| prose"]
    cells = [row.strip("| ").split(" | ") for row in table[2:]]
    assert cells[0][:3] == ["strict", "INCONCLUSIVE", "0.03 share"]
    assert cells[0][4:] == ["1", "0.0392", "193"]
    assert cells[1][:3] == ["prose", "REGRESSED", "0.05 nats/token"]
    assert cells[1][4:] == ["0.0002", "0.0426"]  # nothing more is needed: it is clear
    for row, found in zip(report_of(STRICT, PROSE).rows, cells, strict=True):
        assert found[3] == row.verdict_reason
    assert "## Verdicts" not in render_markdown(report_of(REVIEWS))


def test_single_answers_are_told_of_rows_that_have_them() -> None:
    shown = replace(QUIZ, null_flip_rate=0.01)
    text = render_markdown(report_of(PROSE, shown, REVIEWS))
    assert text.count("| general knowledge (quiz) | 5 | 4 | 5.0% | 90.0% | 1.0% | 99.0% | 2 -> 7 |\n") == 1
    at_chance = replace(shown, retention=None, null_flip_rate=None, num_unparsed_before=None, num_unparsed_after=None)
    assert "| general knowledge (quiz) | 5 | 4 | 5.0% | 90.0% |  | base at chance |  |\n" in render_markdown(
        report_of(at_chance)
    )
    assert "Single answers" not in render_markdown(report_of(PROSE))


def test_drift_is_told_by_group_and_what_was_not_measured_is_said() -> None:
    learnt = replace(
        PROSE, name="learnt", group="trained", difference=-1.0, kl_nats_per_token=None, top1_agreement=None
    )
    text = render_markdown(report_of(PROSE, learnt))
    assert "| trained tasks | -1 | not measured | not measured |\n| base abilities | +0.41 | 0.25 | 75.0% |" in text
    assert "## Drift" not in render_markdown(report_of(QUIZ))


def test_stages_are_a_matrix_and_what_is_read_off_it() -> None:
    # ACC (0.6 + 0.8) / 2; over time (0.9 + 0.7) / 2; BWT 0.6 - 0.9; FWT 0.3 - 0.2; forgetting 0.9 - 0.6;
    # quiz 0.45 - 0.5.
    text = render_markdown(build_report([QUIZ], provenance={}, stages=STAGES))
    assert (
        "## Stages\n\n"
        "| After | Step | a | b | quiz |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| base | 0 | 0.1 | 0.2 | 0.5 |\n"
        "| stage 1 | 10 | 0.9 | 0.3 | 0.5 |\n"
        "| stage 2 | 25 | 0.6 | 0.8 | 0.45 |\n\n"
        "ACC +0.7; average over time +0.8; BWT -0.3; FWT (against the base) +0.1; forgetting (best ever - now) +0.3; "
        "mean change of base abilities -0.05; worst of them (quiz) -0.05.\n\n"
    ) in text
    told = replace(STAGES, intransigence=(0.05, -0.1))
    assert "; intransigence +0.05, -0.1." in render_markdown(build_report([QUIZ], provenance={}, stages=told))
    assert "## Stages" not in render_markdown(report_of(QUIZ))


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
    graded = render_markdown(report_of(replace(QUIZ, num_lost=None, num_gained=None)))
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


def test_the_markdown_shows_twenty_lost_examples_and_counts_all() -> None:
    one = LostExample(prompt="Capital of Chad?", target="N'Djamena", answer_before="N'Djamena", answer_after="")
    markdown = render_markdown(report_of(replace(QUIZ, lost=(one,) * 30, num_lost=30, num_gained=7)))
    assert markdown.count("Capital of Chad?") == 20
    assert "30 lost, 7 gained" in markdown
    assert "20 shown" in markdown

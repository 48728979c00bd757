"""A classifier's two rows: accuracy of examples, and macro-F1 of all of them together."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.unit.test_forgetting import QUIZ, ROUNDING, record, refusal
from trainer.evaluation.capability_row import CapabilityRow, TaskDescription
from trainer.evaluation.forgetting import compare_task
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.report import build_report, read_report, write_report
from trainer.evaluation.report_text import render_markdown

ACCURACY = replace(QUIZ, name="reviews", capability="reviews", kind="classify", measure="accuracy")
MACRO_F1 = replace(ACCURACY, name="reviews-macro-f1", measure="macro-F1")


def labelled(targets: str, answers: str) -> list[ExampleRecord]:
    """A classifier's records: one letter, one label."""
    return [
        replace(record(f"e{index:03d}", float(target == answer), answer=answer), target=target)
        for index, (target, answer) in enumerate(zip(targets, answers, strict=True))
    ]


# 10 good (g) and 10 bad (b) reviews. Naive, always g: F1_g = 2 * 10 / (20 + 10 + 0) = 2/3, F1_b = 0: mean 1/3.
# Skilled, 2 bad ones called g: F1_g = 20 / (20 + 2 + 0) = 10/11, F1_b = 16 / (16 + 0 + 2) = 8/9: mean 89/99.
TARGETS = "g" * 10 + "b" * 10
NAIVE = labelled(TARGETS, "g" * 20)
SKILLED = labelled(TARGETS, "g" * 12 + "b" * 8)


def test_the_macro_f1_row_is_of_targets_and_answers_and_the_accuracy_row_of_scores() -> None:
    accuracy, macro_f1 = (compare_task(task, NAIVE, SKILLED) for task in (ACCURACY, MACRO_F1))
    assert (accuracy.before, accuracy.after, accuracy.num_examples) == (0.5, 0.9, 20)
    assert (macro_f1.before, macro_f1.after) == pytest.approx((1 / 3, 89 / 99), abs=ROUNDING)
    assert macro_f1.difference == pytest.approx(89 / 99 - 1 / 3, abs=ROUNDING)
    assert {key: value for key, value in asdict(macro_f1).items() if key in asdict(MACRO_F1)} == asdict(MACRO_F1)
    assert (macro_f1.num_examples, macro_f1.interval_method) == (20, "percentile bootstrap of examples")


def test_only_the_accuracy_row_has_flips_and_lost_examples() -> None:
    # The 8 bad reviews found by the skilled model are lost: p = 2 / 2^8.
    accuracy, macro_f1 = (compare_task(task, SKILLED, NAIVE) for task in (ACCURACY, MACRO_F1))
    assert (accuracy.num_lost, accuracy.num_gained, accuracy.p_value) == (8, 0, 0.0078125)
    assert len(accuracy.lost) == 8
    assert (macro_f1.num_lost, macro_f1.num_gained, macro_f1.lost) == (None, None, ())


def test_a_macro_f1_that_rises_has_improved_and_one_that_falls_worsened() -> None:
    assert compare_task(MACRO_F1, NAIVE, SKILLED).change == "improved"
    assert compare_task(MACRO_F1, SKILLED, NAIVE).change == "worsened"
    unchanged = compare_task(MACRO_F1, SKILLED, SKILLED)
    assert unchanged.change == "no clear change"
    assert (unchanged.interval_low, unchanged.interval_high) == (0, 0)
    assert unchanged.interval_method == "exact: no example changed"


def test_the_order_of_a_classifiers_records_has_no_effect() -> None:
    assert compare_task(MACRO_F1, NAIVE[::-1], SKILLED) == compare_task(MACRO_F1, NAIVE, SKILLED)


@pytest.mark.parametrize(
    ("kind", "measure"), [("classify", "macro-f1"), ("classify", "exact match"), ("choice", "macro-F1")]
)
def test_a_measure_that_does_not_belong_to_the_kind_is_refused(kind: str, measure: str) -> None:
    with pytest.raises(ValueError, match=f"task quiz: kind {kind} has no measure '{measure}'"):
        replace(QUIZ, kind=kind, measure=measure)


def classifier_rows() -> tuple[CapabilityRow, ...]:
    return compare_task(ACCURACY, SKILLED, NAIVE), compare_task(MACRO_F1, SKILLED, NAIVE)


def test_both_rows_of_a_classifier_come_back_from_the_report_equal(tmp_path: Path) -> None:
    report = build_report(classifier_rows(), provenance={})
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path) == report
    assert [row.name for row in read_report(tmp_path).rows] == [row.name for row in classifier_rows()]


def test_the_report_for_people_shows_macro_f1_beside_accuracy_and_the_lost_examples_once() -> None:
    markdown = render_markdown(build_report(classifier_rows(), provenance={}))
    assert "| reviews | accuracy (share) | 20 | 0.9 | 0.5 | -0.4 |" in markdown
    assert "| reviews | macro-F1 (share) | 20 | 0.899 | 0.333 | -0.566 |" in markdown
    assert "percentile bootstrap of examples: reviews (reviews-macro-f1)" in markdown
    assert markdown.count("<details>") == 1


@pytest.mark.parametrize("task", [ACCURACY, MACRO_F1])
@pytest.mark.parametrize(
    "changed",
    [{"answer": None}, {"answer": None, "value": 0.0}, {"value": 0.0}, {"value": 0.5}, {"answer": "b"}],
)
def test_a_classifier_without_an_answer_or_with_another_score_than_it_earns_is_refused(
    task: TaskDescription, changed: dict[str, str | float | None]
) -> None:
    right = labelled("gb", "gb")
    wrong = [replace(right[0], **changed), right[1]]
    expected = "1 id(s) lack an answer scored 1 if right and 0 if not: 'e000'. Correct the scorer."
    assert expected in refusal(wrong, right, task=task)
    assert expected in refusal(right, wrong, task=task)


@pytest.mark.parametrize("changed", [{"target": "b", "value": 0.0}, {"scorer": "head_label@2"}])
def test_macro_f1_is_of_the_same_examples_and_scorer_or_refused(changed: dict[str, str | float]) -> None:
    before = labelled("gb", "gb")
    message = refusal(before, [replace(before[0], **changed), before[1]], task=MACRO_F1)
    assert f"1 id(s) differ in {next(iter(changed))} before and after: 'e000'" in message

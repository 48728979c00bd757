"""All rows of a comparison: a model and itself are kept in everything, and each lost answer is counted."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.test_forgetting import CHOICE, PROSE, QUIZ, flipped, losses, scores
from trainer.config.errors import EXIT_DONE, EXIT_REGRESSED
from trainer.evaluation.capability_row import TaskDescription
from trainer.evaluation.join import JoinError
from trainer.evaluation.records import ExampleRecord
from trainer.evaluation.report import build_report
from trainer.evaluation.rows import compare_all, part_of
from trainer.evaluation.verdict_rule import exit_code

LABEL = replace(QUIZ, name="label", capability="label", kind="classify", measure="accuracy", margin=0.01)
LEARNT = replace(QUIZ, name="learnt", capability="learnt", group="trained")
DESCRIPTIONS: dict[str, Sequence[TaskDescription]] = {
    "quiz": [QUIZ],
    "choice": [replace(CHOICE, name="choice")],
    "prose": [PROSE],
    "graded": [replace(QUIZ, name="graded", measure="chrF")],
    "passages": [replace(QUIZ, name="passages")],
    "label": [LABEL, replace(LABEL, name="label-macro-f1", measure="macro-F1")],
    "learnt": [LEARNT],
}


def all_records() -> dict[str, list[ExampleRecord]]:
    """Records of every kind, none of which says that much is known: most intervals of samples would be wide."""
    quiz, _ = flipped(20, lost=0, gained=0)
    labels = [
        replace(one, target="gb"[n % 2], answer="gb"[n % 3 % 2], value=float(n % 2 == n % 3 % 2))
        for n, one in enumerate(quiz)
    ]
    return {
        "quiz": quiz,
        "choice": [replace(one, candidate_nats=(1.0, 2.0, 3.0)) for one in quiz],
        "prose": [replace(one, num_bytes=40, kl_nats=0.0, num_agreeing_tokens=10) for one in losses(40, 50, 60)],
        "graded": scores(0.25, 0.5, 0.75),
        "passages": [replace(one, cluster=f"passage {n // 5}") for n, one in enumerate(quiz)],
        "label": labels,
        "learnt": quiz,
    }


def test_a_model_compared_with_itself_lost_nothing_for_certain() -> None:
    rows = compare_all(DESCRIPTIONS, before=all_records(), after=all_records(), null={})
    report = build_report(rows, provenance={})
    assert len(report.rows) == 8
    for row in report.rows:
        assert (row.difference, row.interval_low, row.interval_high, row.standard_error) == (0, 0, 0, 0)
        assert (row.p_value, row.change, row.lost) == (1.0, "no clear change", ())
        assert row.num_lost in (0, None)
        assert row.num_gained in (0, None)
        assert row.answer_agreement in (1.0, None)
        if row.group == "base":
            assert (row.verdict, row.adjusted_p) == ("NON-INFERIOR", 1.0)
    assert {one.verdict for one in report.capabilities} == {"NON-INFERIOR"}
    assert {row.name for row in report.rows if row.num_lost is not None} == {
        *("quiz", "choice", "passages", "label", "learnt")
    }
    (drift,) = report.drift
    assert (drift.delta_nll, drift.kl_nats_per_token, drift.top1_agreement) == (0.0, 0.0, 1.0)
    assert report.verdict is not None
    assert (report.forgotten, exit_code(report.verdict)) == ((), EXIT_DONE)


def test_one_other_output_anywhere_makes_all_scores_a_sample_again() -> None:
    # A model whose answers moved by a hair is another model: that its 20 scores are the same shows little.
    after = all_records()
    after["graded"][0] = replace(after["graded"][0], answer="other")
    rows = {row.name: row for row in compare_all(DESCRIPTIONS, before=all_records(), after=after, null={})}
    assert (rows["quiz"].difference, rows["quiz"].interval_method) == (0, "score (Tango)")
    assert rows["quiz"].interval_low < -0.1
    report = build_report(rows.values(), provenance={})
    assert {row.name: row.verdict for row in report.rows}["quiz"] == "INCONCLUSIVE"


@pytest.mark.parametrize(("num_flips", "p_value"), [(5, 0.0625), (10, 0.001953125)])
def test_answers_that_are_flipped_are_those_that_are_counted(num_flips: int, p_value: float) -> None:
    # 2 / 2^5 and 2 / 2^10: of the one base row, only the second is a clear loss.
    before, after = flipped(40, lost=num_flips, gained=0)
    (row,) = build_report(
        compare_all({"quiz": [QUIZ]}, before={"quiz": before}, after={"quiz": after}, null={}), provenance={}
    ).rows
    assert (row.num_lost, row.num_gained, row.conditional_forgetting) == (num_flips, 0, num_flips / 20)
    assert (row.p_value, row.adjusted_p) == (p_value, p_value)
    assert [lost.prompt for lost in row.lost] == [f"ask e{2 * number:03d}" for number in range(num_flips)]
    assert row.verdict == ("REGRESSED" if p_value < 0.05 else "INCONCLUSIVE")
    assert row.verdict is not None
    assert (exit_code(row.verdict) == EXIT_REGRESSED) == (num_flips == 10)


def test_every_description_of_a_task_gives_a_row_of_the_same_records_in_their_order() -> None:
    rows = compare_all(DESCRIPTIONS, before=all_records(), after=all_records(), null={})
    assert [row.name for row in rows] == [one.name for several in DESCRIPTIONS.values() for one in several]


def test_the_floor_of_flips_is_that_of_the_task_itself() -> None:
    before, records = all_records(), all_records()
    null = {"quiz": [replace(one, value=1 - one.value) for one in records["quiz"][:4]] + records["quiz"][4:]}
    rows = {row.name: row for row in compare_all(DESCRIPTIONS, before=before, after=records, null=null)}
    assert (rows["quiz"].null_flip_rate, rows["choice"].null_flip_rate) == (0.2, None)


def test_a_task_of_other_examples_stops_the_whole_comparison() -> None:
    after = all_records() | {"learnt": all_records()["learnt"][1:]}
    with pytest.raises(JoinError, match="task learnt: 1 id"):
        compare_all(DESCRIPTIONS, before=all_records(), after=after, null={})


def test_a_part_of_the_examples_is_compared_with_the_same_part_of_the_base() -> None:
    before, after = flipped(20, lost=2, gained=0)
    part = part_of(before, after[5:9])
    assert part == before[5:9]
    (row,) = compare_all({"quiz": [QUIZ]}, before={"quiz": part}, after={"quiz": after[5:9]}, null={})
    assert row.num_examples == 4

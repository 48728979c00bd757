"""The report: its verdicts over all base rows together, its drift, its bytes, and what it refuses to be."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config.errors import EXIT_DONE, EXIT_INCONCLUSIVE, EXIT_REGRESSED, DataError
from trainer.evaluation.capability_row import CapabilityRow, LostExample
from trainer.evaluation.continual import ContinualMatrix
from trainer.evaluation.report import Drift, ForgettingReport, build_report, read_report, write_report
from trainer.evaluation.stages import read_off
from trainer.evaluation.verdict_rule import Verdict, exit_code

PROSE = CapabilityRow(
    name="prose",
    capability="prose",
    group="base",
    kind="text",
    measure="loss",
    unit="nats/token",
    higher_is_better=False,
    margin=0.05,
    num_examples=400,
    num_clusters=400,
    num_units=8000.0,
    before=4.5204,
    after=4.9301,
    difference=0.4097,
    interval_low=0.3801,
    interval_high=0.4399,
    interval_method="skewness-corrected t",
    standard_error=0.0152,
    minimal_detectable_effect=0.0426,
    num_examples_needed=290,
    change="worsened",
    p_value=0.0001,
    p_method="sign-flip permutation",
    bits_per_byte_before=1.5,
    bits_per_byte_after=1.6,
    kl_nats_per_token=0.25,
    top1_agreement=0.75,
)
QUIZ = CapabilityRow(
    name="quiz",
    capability="general knowledge",
    group="base",
    kind="generate",
    measure="exact match",
    unit="share",
    higher_is_better=True,
    margin=0.04,
    num_examples=200,
    num_clusters=200,
    num_units=200.0,
    before=0.5,
    after=0.495,
    difference=-0.005,
    interval_low=-0.035,
    interval_high=0.02,
    interval_method="score (Tango)",
    standard_error=0.014,
    minimal_detectable_effect=0.0392,
    num_examples_needed=193,
    change="no clear change",
    p_value=1.0,
    p_method="exact McNemar",
    num_lost=5,
    num_gained=4,
    conditional_forgetting=0.05,
    answer_agreement=0.9,
    chance=0.0,
    retention=0.99,
    num_unparsed_before=2,
    num_unparsed_after=7,
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
    p_value=1.7763568394002505e-15,
    lost=(),
)
PROVENANCE = {"commit": "abc123", "config_sha256": "f00d", "seed": 0, "step": 100, "versions": {"torch": "2", "b": "1"}}


def report_of(*rows: CapabilityRow) -> ForgettingReport:
    return build_report(rows, provenance=PROVENANCE)


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


def verdicts(*rows: CapabilityRow) -> dict[str, Verdict | None]:
    return {row.name: row.verdict for row in report_of(*rows).rows}


def test_a_verdict_is_of_the_gain_whichever_way_the_measure_points() -> None:
    # prose rises by 0.38 to 0.44 nats, margin 0.05: worse.  Falling by as much it is better.  quiz: -0.035 is within
    # 0.04, but not within 0.03.  A trained task has no verdict.
    better = replace(PROSE, name="better", difference=-0.41, interval_low=-0.44, interval_high=-0.38, change="improved")
    strict = replace(QUIZ, name="strict", margin=0.03)
    assert verdicts(PROSE, better, QUIZ, strict, REVIEWS) == {
        "reviews": None,
        "prose": "REGRESSED",
        "better": "NON-INFERIOR",
        "quiz": "NON-INFERIOR",
        "strict": "INCONCLUSIVE",
    }


def test_the_worst_verdict_of_its_rows_is_that_of_a_capability_and_of_all_that_of_the_report() -> None:
    strict = replace(QUIZ, name="strict", margin=0.03)
    report = report_of(QUIZ, REVIEWS, strict)
    assert [(one.capability, one.verdict, one.rows) for one in report.capabilities] == [
        ("general knowledge", "INCONCLUSIVE", ("quiz", "strict"))
    ]
    assert report.verdict == "INCONCLUSIVE"
    everything = report_of(strict, PROSE, QUIZ, REVIEWS)
    assert [(one.capability, one.verdict) for one in everything.capabilities] == [
        ("general knowledge", "INCONCLUSIVE"),
        ("prose", "REGRESSED"),
    ]
    assert everything.verdict == "REGRESSED"
    codes = [exit_code(found) for found in (everything.verdict, report.verdict, report_of(QUIZ).verdict) if found]
    assert codes == [EXIT_REGRESSED, EXIT_INCONCLUSIVE, EXIT_DONE]
    assert (report_of(REVIEWS).verdict, report_of(REVIEWS).capabilities) == (None, ())


def test_the_more_base_rows_are_looked_at_the_clearer_a_loss_must_be() -> None:
    # Holm (1979): the smallest of m p values is multiplied by m.  0.02 is below 0.05 alone and beside one more row,
    # but 3 * 0.02 = 0.06 is not.  Trained rows are not looked at for losses.
    clear = replace(QUIZ, name="clear", interval_low=-0.2, interval_high=-0.01, p_value=0.02, change="worsened")
    trained, others = replace(REVIEWS, p_value=0.9), [replace(QUIZ, name=f"other {n}", p_value=0.9) for n in range(3)]
    found = {}
    for number in range(4):
        rows = {row.name: row for row in report_of(clear, trained, *others[:number]).rows}
        found[number] = (rows["clear"].verdict, rows["clear"].adjusted_p)
        assert (rows["reviews"].adjusted_p, rows["reviews"].verdict) == (0.9, None)  # of its own group
    assert found == {
        0: ("REGRESSED", pytest.approx(0.02)),
        1: ("REGRESSED", pytest.approx(0.04)),
        2: ("INCONCLUSIVE", pytest.approx(0.06)),
        3: ("INCONCLUSIVE", pytest.approx(0.08)),
    }


def test_an_adjusted_p_is_never_below_that_of_a_smaller_p() -> None:
    # Sorted 0.01, 0.02, 0.02: times 3, 2, 1 and never falling: 0.03, 0.04, 0.04.
    rows = [replace(QUIZ, name=name, p_value=p) for name, p in (("a", 0.02), ("b", 0.01), ("c", 0.02))]
    assert [row.adjusted_p for row in report_of(*rows).rows] == pytest.approx([0.04, 0.03, 0.04])


def test_nothing_is_kept_by_a_margin_below_what_flips_by_itself() -> None:
    assert verdicts(replace(QUIZ, null_flip_rate=0.03)) == {"quiz": "NON-INFERIOR"}
    assert verdicts(replace(QUIZ, null_flip_rate=0.05)) == {"quiz": "INCONCLUSIVE"}


def test_a_base_at_chance_is_said_to_have_had_nothing_to_lose() -> None:
    (row,) = report_of(replace(QUIZ, retention=None, chance=0.5)).rows
    assert row.verdict_reason.endswith("; the base was not shown to be above chance, so it had little to lose")
    assert "chance" not in report_of(PROSE).rows[0].verdict_reason


def test_drift_is_over_the_loss_rows_of_each_group_by_their_tokens() -> None:
    # 8000 tokens at 0.4097 and 2000 at -0.1: (3277.6 - 200) / 10000.  Only prose was compared with the base.
    verse = replace(PROSE, name="verse", num_units=2000.0, difference=-0.1, kl_nats_per_token=None, top1_agreement=None)
    learnt = replace(verse, name="learnt", group="trained", difference=-1.0)
    assert report_of(PROSE, verse, learnt, QUIZ).drift == (
        Drift(group="trained", delta_nll=-1.0, kl_nats_per_token=None, top1_agreement=None),
        Drift(group="base", delta_nll=pytest.approx(0.30776), kl_nats_per_token=0.25, top1_agreement=0.75),
    )
    both = replace(verse, kl_nats_per_token=0.5, top1_agreement=0.25)
    (drift,) = report_of(PROSE, both).drift
    assert (drift.kl_nats_per_token, drift.top1_agreement) == pytest.approx((0.3, 0.65))
    assert report_of(QUIZ).drift == ()


STAGES = read_off(
    ContinualMatrix(
        stages=("base", "stage 1", "stage 2"),
        tasks=("a", "b", "quiz"),
        learnt_in=(1, 2, 0),
        scores_RT=((0.1, 0.2, 0.5), (0.9, 0.3, 0.5), (0.6, 0.8, 0.45)),
    ),
    steps=(0, 10, 25),
)


def test_a_report_is_read_back_equal(tmp_path: Path) -> None:
    report = build_report([PROSE, QUIZ, REVIEWS], provenance=PROVENANCE, stages=STAGES)
    for one in (report, report_of(PROSE), report_of(REVIEWS)):
        write_report(tmp_path / "report.json", one)
        assert read_report(tmp_path) == one
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_the_same_report_gives_the_same_bytes_whatever_the_order_of_the_provenance(tmp_path: Path) -> None:
    for name, provenance in (("a", PROVENANCE), ("b", dict(reversed(PROVENANCE.items())))):
        write_report(tmp_path / name, build_report([QUIZ], provenance=provenance))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    raw = json.loads((tmp_path / "a").read_text(encoding="utf-8"))
    assert list(raw) == [
        *("capabilities", "drift", "forgotten", "provenance", "recovery", "rows", "schema_version", "stages"),
        *("verdict", "worst_base"),
    ]
    assert (raw["schema_version"], raw["rows"][0]["lost"][0]["prompt"]) == (2, "Capital of Peru?")


def test_a_report_without_rows_or_with_a_name_twice_or_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="got: none"):
        report_of()
    with pytest.raises(ValueError, match="got: quiz, quiz"):
        report_of(QUIZ, QUIZ)
    with pytest.raises(ValueError, match="not JSON compliant"):
        build_report([QUIZ], provenance={"loss": math.nan})


def test_a_missing_report_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json: cannot be read \(no such file"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version": 2', '"schema_version": 1', "schema_version is 1, 2 is needed"),
        ('"schema_version": 2,', "", "schema_version is None, 2 is needed|not a JSON object"),
        ('"num_lost"', '"num_gone"', "not a report of schema 2"),
        ('"target"', '"aim"', "not a report of schema 2"),
        ('"worst_base"', '"worst"', "not a report of schema 2"),
        ('"delta_nll"', '"delta"', "not a report of schema 2"),
        ('"learnt_in"', '"learned_in"', "not a report of schema 2"),
        ('"ability_delta"', '"delta"', "not a report of schema 2"),
        ('"capability": "prose",\n      "rows"', '"rows"', "not a report of schema 2"),
        ("{", "[", "not a JSON object"),
    ],
)
def test_a_report_of_another_shape_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "report.json"
    write_report(path, build_report([QUIZ, PROSE], provenance={}, stages=STAGES))
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=rf"report\.json: ({message}).* Make the report again\.") as caught:
        read_report(tmp_path)
    assert "\n" not in str(caught.value)

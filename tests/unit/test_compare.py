"""The sides of a comparison: what they are taken for, and what is refused in one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.arms import compare_arms
from launch.compare import ModelSettings, Side, compare_sides, read_side
from launch.machine import this_machine
from trainer.config.errors import InputError
from trainer.evaluation.records import ExampleRecord, write_records

SAMPLES = Path(__file__).parent / "lm_eval_samples"


def records(scores: str, *, scorer: str = "exact_match@1") -> list[ExampleRecord]:
    """One record a digit."""
    return [
        ExampleRecord(
            id=f"e{number:03d}",
            prompt_sha256=f"{number:064d}",
            scorer=scorer,
            value=float(score),
            weight=1.0,
            prompt="p",
            target="t",
            answer="t" if score == "1" else "f",
        )
        for number, score in enumerate(scores)
    ]


def read(given: str, **options: str | None) -> Side:
    settings = ModelSettings(suite=None, max_examples=10, sequence_length_tokens=64, precision="fp32", device="cpu")
    chosen = {"metric": None, "filter_name": None, **options}
    return read_side(given, machine=this_machine(), settings=settings, **chosen)  # type: ignore[arg-type]


def test_a_folder_of_records_is_a_side_and_the_verdict_follows_from_them(tmp_path: Path) -> None:
    for name, scores in (("a", "1" * 90 + "0" * 10), ("b", "1" * 40 + "0" * 60)):
        write_records(tmp_path / name / "quiz.jsonl", records(scores))
    report = compare_sides(read(f"{tmp_path}/a"), read(f"{tmp_path}/b"), margin=None, notify=print)
    (row,) = report.rows
    assert (row.before, row.after, row.num_lost, row.num_gained) == (0.9, 0.4, 50, 0)
    assert (row.group, row.measure, row.margin, row.verdict) == ("base", "exact match", 0.02, "REGRESSED")
    assert report.verdict == "REGRESSED"


def test_a_margin_for_all_replaces_the_defaults(tmp_path: Path) -> None:
    write_records(tmp_path / "quiz.jsonl", records("10" * 50))
    side = read(str(tmp_path / "quiz.jsonl"))
    changed = replace(side, records={"quiz": [replace(one, answer="other") for one in side.records["quiz"]]})
    assert [compare_sides(side, changed, margin=margin, notify=print).verdict for margin in (None, 0.2)] == [
        "INCONCLUSIVE",
        "NON-INFERIOR",
    ]


def test_sample_files_of_lm_eval_are_a_side() -> None:
    sides = [read(str(SAMPLES / name), filter_name="first-word") for name in ("before", "after")]
    report = compare_sides(*sides, margin=None, notify=print)
    assert {row.name for row in report.rows} == set(sides[0].records)
    assert {row.kind for row in report.rows} == {"choice", "generate"}


def test_what_only_one_side_has_is_told(tmp_path: Path) -> None:
    quiz, extra = records("10" * 10), records("01" * 10)
    told: list[str] = []
    compare_sides(
        Side(name="a", records={"quiz": quiz, "extra": extra}),
        Side(name="b", records={"quiz": quiz}),
        margin=None,
        notify=told.append,
    )
    assert told == ["only in a, not compared: extra"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("nowhere", "found nothing, wanted a run, a model"), (".", "found a folder without any of these")],
)
def test_what_is_no_side_is_refused(tmp_path: Path, given: str, wanted: str) -> None:
    (tmp_path / "empty").mkdir()
    path = tmp_path / "empty" if given == "." else tmp_path / given
    with pytest.raises(InputError, match=wanted):
        read(str(path))


def test_sides_without_a_common_task_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to compare: a has x; b has y"):
        compare_sides(
            Side(name="a", records={"x": records("10")}),
            Side(name="b", records={"y": records("10")}),
            margin=None,
            notify=print,
        )


def test_records_of_an_unknown_scorer_are_refused() -> None:
    side = Side(name="a", records={"x": records("10", scorer="homemade@1")})
    with pytest.raises(InputError, match="scorer 'homemade@1' is of an unknown kind"):
        compare_sides(side, side, margin=None, notify=print)


def test_an_arm_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        compare_arms([tmp_path, tmp_path], [tmp_path], machine=this_machine(), notify=print)

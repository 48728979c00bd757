"""The join of records and the row it gives: like is compared with like, or not at all."""

from dataclasses import asdict, replace

import pytest

from trainer.evaluation.forgetting import JoinError, LostExample, TaskDescription, compare_task
from trainer.evaluation.records import ExampleRecord

QUIZ = TaskDescription(
    name="quiz",
    capability="general knowledge",
    group="base",
    kind="generate",
    measure="exact match",
    unit="share",
    higher_is_better=True,
)
PROSE = TaskDescription(
    name="prose",
    capability="prose",
    group="base",
    kind="text",
    measure="loss",
    unit="nats/token",
    higher_is_better=False,
)

ROUNDING = 1e-12


def record(key: str, value: float, *, weight: float = 1.0, answer: str | None = "said") -> ExampleRecord:
    return ExampleRecord(
        id=key,
        prompt_sha256=f"sha-{key}",
        scorer="exact_match@1",
        value=value,
        weight=weight,
        prompt=f"ask {key}",
        target=f"want {key}",
        answer=answer,
    )


def scores(*values: float, answer: str = "said") -> list[ExampleRecord]:
    return [record(f"e{index:03d}", value, answer=answer) for index, value in enumerate(values)]


def losses(*values: float) -> list[ExampleRecord]:
    return [record(f"e{index:03d}", value, weight=10.0, answer=None) for index, value in enumerate(values)]


def test_the_same_records_twice_show_no_change_and_lose_nothing() -> None:
    row = compare_task(QUIZ, scores(0, 1, 1), scores(0, 1, 1))
    assert (row.difference, row.interval_low, row.interval_high) == (0, 0, 0)
    assert row.interval_method == "exact: no example changed"
    assert row.change == "no clear change"
    assert (row.lost, row.num_lost, row.num_gained, row.mcnemar_p) == ((), 0, 0, 1.0)


def test_a_row_holds_the_description_and_the_counts() -> None:
    # 20 examples: 16 right before; 9 of them lost, 1 gained: 8 right after.  p = 2 * (1 + 10) / 2^10.
    row = compare_task(QUIZ, scores(*[1] * 16, *[0] * 4), scores(*[0] * 9, *[1] * 8, *[0] * 3))
    assert {key: value for key, value in asdict(row).items() if key in asdict(QUIZ)} == asdict(QUIZ)
    assert (row.num_examples, row.before, row.after) == (20, 0.8, 0.4)
    assert row.difference == pytest.approx(-0.4)
    assert (row.num_lost, row.num_gained, row.mcnemar_p) == (9, 1, 0.021484375)
    assert row.interval_low < -0.4 < row.interval_high < 0
    assert row.change == "worsened"


@pytest.mark.parametrize(("direction", "change"), [(1, "worsened"), (-1, "improved")])
def test_a_loss_that_rises_has_worsened_and_one_that_falls_improved(direction: int, change: str) -> None:
    # Ten texts of 10 tokens move by 1.0 to 1.9 nats: mean 1.45 nats a text, 0.145 nats a token.
    moved = [40 + direction * (1 + 0.1 * index) for index in range(10)]
    row = compare_task(PROSE, losses(*[40] * 10), losses(*moved))
    assert row.before == 4.0
    assert row.difference == pytest.approx(direction * 0.145)
    assert row.change == change
    assert (row.num_lost, row.num_gained, row.mcnemar_p, row.lost) == (None, None, None, ())


def test_a_loss_has_no_flips_even_if_it_is_zero_or_one() -> None:
    assert compare_task(PROSE, losses(0, 1), losses(1, 0)).mcnemar_p is None


def test_a_score_that_rises_has_improved() -> None:
    row = compare_task(QUIZ, scores(*[0] * 20), scores(*[1] * 15, *[0] * 5))
    assert row.change == "improved"
    assert (row.num_lost, row.num_gained) == (0, 15)


def test_a_score_where_lower_is_better_is_lost_when_it_rises() -> None:
    harm = replace(QUIZ, higher_is_better=False)
    row = compare_task(harm, scores(*[0] * 20), scores(*[1] * 15, *[0] * 5))
    assert row.change == "worsened"
    assert (row.num_lost, row.num_gained, len(row.lost)) == (15, 0, 15)


def test_an_interval_that_includes_zero_shows_no_clear_change() -> None:
    row = compare_task(QUIZ, scores(1, 0, 1, 0, 1, 0), scores(0, 1, 1, 0, 0, 0))
    assert row.interval_low < 0 < row.interval_high
    assert row.change == "no clear change"


def test_scores_between_zero_and_one_have_no_flips_but_do_have_losses() -> None:
    row = compare_task(QUIZ, scores(0.5, 0.9, 1.0), scores(0.4, 1.0, 1.0))
    assert (row.num_lost, row.num_gained, row.mcnemar_p) == (None, None, None)
    assert [lost.prompt for lost in row.lost] == ["ask e000"]


def test_lost_examples_come_largest_fall_first_then_by_id() -> None:
    # Falls: e000 0.25, e001 0.5, e002 none, e003 0.5, e004 0.75.
    before = scores(0.75, 1.0, 0.5, 0.75, 1.0, answer="old")
    after = scores(0.5, 0.5, 0.75, 0.25, 0.25, answer="new")
    row = compare_task(QUIZ, before, after)
    assert [lost.prompt for lost in row.lost] == ["ask e004", "ask e001", "ask e003", "ask e000"]
    assert row.lost[0] == LostExample(prompt="ask e004", target="want e004", answer_before="old", answer_after="new")


def test_at_most_twenty_lost_examples_are_kept_but_all_are_counted() -> None:
    row = compare_task(QUIZ, scores(*[1] * 30), scores(*[0] * 25, *[1] * 5))
    assert (len(row.lost), row.num_lost) == (20, 25)
    assert row.lost[-1].prompt == "ask e019"


def test_the_order_of_the_records_has_no_effect() -> None:
    before, after = scores(*[0.5] * 20), scores(*[(37 * index % 101) / 101 for index in range(20)])
    assert compare_task(QUIZ, before[::-1], after) == compare_task(QUIZ, before, after)


def refusal(before: list[ExampleRecord], after: list[ExampleRecord], *, task: TaskDescription = QUIZ) -> str:
    with pytest.raises(JoinError) as caught:
        compare_task(task, before, after)
    message = str(caught.value)
    assert message.startswith(f"task {task.name}: ")
    assert "\n" not in message
    return message


def test_an_example_that_is_only_on_one_side_is_refused() -> None:
    assert "'e002'" in refusal(scores(0, 1, 1), scores(0, 1))
    assert "only in the records before" in refusal(scores(0, 1, 1), scores(0, 1))
    assert "only in the records after" in refusal(scores(0, 1), scores(0, 1, 1))


def test_a_repeated_id_is_refused_on_either_side() -> None:
    once, twice = scores(0, 1), [*scores(0, 1), record("e001", 1)]
    assert "1 id(s) occur more than once before training: 'e001'" in refusal(twice, once)
    assert "1 id(s) occur more than once after training: 'e001'" in refusal(once, twice)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("prompt_sha256", {"prompt_sha256": "sha-other"}),
        ("target", {"target": "other"}),
        ("scorer", {"scorer": "exact_match@2"}),
        ("weight", {"weight": 2.0}),
    ],
)
def test_examples_that_are_not_the_same_are_refused(field: str, changed: dict[str, str | float]) -> None:
    before = losses(40, 50)
    after = [before[0], replace(before[1], **changed)]
    message = refusal(before, after, task=PROSE)
    assert f"1 id(s) differ in {field} before and after: 'e001'. " in message
    assert "measure both models again" in message


def test_only_a_few_ids_are_named_but_all_are_counted() -> None:
    before = scores(*[1] * 12)
    message = refusal(before, [replace(one, scorer="exact_match@2") for one in before])
    assert "12 id(s) differ in scorer before and after: 'e000', 'e001', 'e002', 'e003', 'e004' and 7 more." in message


@pytest.mark.parametrize("changed", [{"value": 1.5}, {"value": -0.5}, {"weight": 3.0}])
def test_a_score_outside_its_range_is_refused(changed: dict[str, float]) -> None:
    wrong = [scores(0, 1)[0], replace(scores(0, 1)[1], **changed)]
    assert "1 id(s) are not scores in [0, 1] with weight 1: 'e001'" in refusal(wrong, wrong)


def test_two_scorers_in_one_task_are_refused() -> None:
    mixed = [scores(0, 1)[0], replace(scores(0, 1)[1], scorer="chrf@1")]
    assert "several scorers" in refusal(mixed, mixed)


def test_fewer_than_two_examples_are_refused() -> None:
    assert "1 example(s)" in refusal(scores(1), scores(0))
    assert "0 example(s)" in refusal([], [])

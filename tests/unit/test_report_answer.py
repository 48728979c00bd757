"""The answer of a report in plain words: it claims no more than the verdicts, and hides nothing beside them."""

from dataclasses import replace

from tests.report_rows import FABLES, KEPT, PROSE, QUIZ, REVIEWS, report_of
from trainer.report_answer import answer


def test_regressed_names_what_is_lost_and_what_cannot_be_told() -> None:
    found = answer(report_of(PROSE, QUIZ))
    assert (found.verdict, found.line) == ("REGRESSED", "This model has measurably lost: prose.")
    assert found.details == (
        "Lost: prose, loss 4.52 \u2192 4.93 nats/token (+0.41 [0.38, 0.44]).",
        "knowledge (quiz): needs about 7,166 examples, 200 were measured.",
    )


def test_inconclusive_tells_how_many_examples_are_needed() -> None:
    found = answer(report_of(FABLES, QUIZ))
    assert (found.verdict, found.line) == ("INCONCLUSIVE", "Not enough examples to tell: knowledge.")
    assert found.details == ("knowledge (quiz): needs about 7,166 examples, 200 were measured.",)


def test_inconclusive_does_not_ask_for_examples_that_would_not_help() -> None:
    drowned = replace(QUIZ, null_flip_rate=0.03)  # above the margin of 0.02
    found = answer(report_of(drowned))
    assert found.line == "It cannot be told what was lost of: knowledge."
    assert "its margin of 0.02 share lies below the 3.0% of answers that flip" in found.details[0]
    enough = answer(report_of(replace(QUIZ, num_examples_needed=150)))
    assert "150 examples should have been enough had nothing been lost" in enough.details[0]
    weak = replace(QUIZ, difference=-0.05, interval_low=-0.1, interval_high=-0.001, change="worsened", p_value=0.2)
    assert answer(report_of(weak)).details[0].startswith("It looks worse, but not beyond doubt among all measures")


def test_non_inferior_says_that_the_data_are_enough_and_hides_no_small_loss() -> None:
    found = answer(report_of(FABLES, KEPT))
    assert found.verdict == "NON-INFERIOR"
    assert found.line == "Nothing lost beyond the margin was found, and the data are enough to say so."
    assert found.details == ()
    small = replace(PROSE, difference=0.02, interval_low=0.01, interval_high=0.03, after=4.54)
    guessing = replace(KEPT, chance=0.5, retention=None)
    worse = replace(REVIEWS, change="worsened")
    details = answer(report_of(small, guessing, worse)).details
    assert details[0].startswith("A loss that is small but clear, within the margin: prose, loss 4.52")
    assert details[1] == "Little to lose, as the base was not shown to be above chance: sums (kept)."
    assert details[2].startswith("A trained task got worse: reviews, exact match 0.6")


def test_without_base_abilities_nothing_is_claimed() -> None:
    found = answer(report_of(REVIEWS))
    assert found.verdict == "NOT MEASURED"
    assert found.line.startswith("Not measured")

"""Scores of generated answers: trimmed equality, word F1 and chrF2 worked by hand, numbers, and what cannot be read."""

import pytest
from sacrebleu.metrics.chrf import CHRF

from trainer.config.data_schema import Scorer
from trainer.evaluation.scorers import Scored, score_answer

ROUNDING = 1e-9


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("Lima", "Lima", 1.0),
        (" Lima\n", "Lima", 1.0),
        ("Lima", "\t Lima ", 1.0),
        ("", "  ", 1.0),
        ("lima", "Lima", 0.0),
        ("Lima.", "Lima", 0.0),
        ("Li ma", "Lima", 0.0),
        ("", "Lima", 0.0),
        ("e\u0301", "\u00e9", 0.0),
    ],
)
def test_an_exact_match_is_equal_after_trimming_and_nothing_else(answer: str, target: str, score: float) -> None:
    assert score_answer(answer, target, scorer="exact_match") == Scored(score, bool(answer))


def test_chrf_weighs_recall_over_precision_by_four() -> None:
    # Answer "ab", target "abc".  Letters: 2 of 2 right, 2 of 3 found.  Pairs: 1 of 1, 1 of 2.  The answer has no
    # longer n-grams.  P = 1, R = (2/3 + 1/2) / 2 = 7/12.  F2 = 5 P R / (4 P + R) = (35/12) / (55/12) = 7/11.
    assert score_answer("ab", "abc", scorer="chrf").value == pytest.approx(7 / 11, abs=ROUNDING)
    # The other way round: P = 7/12, R = 1: (35/12) / (28/12 + 12/12) = 35/40.
    assert score_answer("abc", "ab", scorer="chrf").value == pytest.approx(35 / 40, abs=ROUNDING)


def test_chrf_is_a_share_that_goes_from_nothing_to_everything() -> None:
    assert score_answer("abcdefgh", "abcdefgh", scorer="chrf").value == pytest.approx(1.0, abs=ROUNDING)
    assert score_answer("xyz", "abc", scorer="chrf").value == 0.0
    assert score_answer("", "abc", scorer="chrf").value == 0.0


def test_chrf_sees_no_white_space_but_sees_case() -> None:
    assert score_answer("la casa", " lacasa\n", scorer="chrf").value == pytest.approx(1.0, abs=ROUNDING)
    assert score_answer("LA CASA", "la casa", scorer="chrf").value == 0.0


def test_chrf_is_sacrebleus_own_with_its_defaults() -> None:
    # signature nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no: chrF2.
    answer, target = "El gato duerme en la casa", "El gato negro dorm\u00eda en casa"
    wanted = CHRF().sentence_score(answer, [target]).score / 100
    assert score_answer(answer, target, scorer="chrf").value == wanted
    assert 0.3 < wanted < 0.9
    assert wanted != CHRF(word_order=2).sentence_score(answer, [target]).score / 100


# Worked by hand: C common words of A in the answer and T in the target: 2 C / (A + T).
@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("Lima", "Lima", 1.0),
        ("The city of LIMA.", "lima", 2 / (3 + 1)),  # "city of lima": the article goes
        ("an old man and the sea", "The Old Man and the Sea!", 1.0),
        ("a b c", "b c d e", 4 / (2 + 4)),  # "a" is an article: C 2, A 2, T 4
        ("cat cat cat", "cat dog", 2 / (3 + 2)),  # a word counts as often as it is in both
        ("cat cat", "cat cat dog", 4 / (2 + 3)),
        ("theatre", "the theatre", 1.0),  # only whole words are articles
        ("x", "y", 0.0),
        ("", "y", 0.0),
        ("the", "a", 1.0),  # nothing but articles on either side
        ("the", "y", 0.0),
    ],
)
def test_word_f1_counts_common_words_without_case_punctuation_and_articles(
    answer: str, target: str, score: float
) -> None:
    found = score_answer(answer, target, scorer="f1")
    assert found.value == pytest.approx(score, abs=ROUNDING)
    assert found.is_parsed == bool(answer)


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("So it is 42.", "42", 1.0),
        ("6 * 7 = 42", "#### 42", 1.0),
        ("42 of 100", "42", 0.0),  # the last number is what was answered
        ("$1,234.50", "1234.5", 1.0),
        ("1,234,567", "1234567", 1.0),
        ("1,23", "23", 1.0),  # no thousands: two numbers
        ("-3", "3", 0.0),
        ("-3", "-3.0", 1.0),
        ("+3", "3", 1.0),
        (".5", "0.50", 1.0),
        ("0.1", "0.10000000000000001", 0.0),  # decimals, not floats
        ("7.", "7", 1.0),
    ],
)
def test_a_number_is_the_last_one_whatever_its_form(answer: str, target: str, score: float) -> None:
    assert score_answer(answer, target, scorer="numeric") == Scored(score, True)


@pytest.mark.parametrize("answer", ["", "forty-two", "?"])
def test_an_answer_without_a_number_cannot_be_read(answer: str) -> None:
    assert score_answer(answer, "42", scorer="numeric") == Scored(0.0, False)
    assert score_answer(answer, "no number here", scorer="numeric") == Scored(0.0, False)


@pytest.mark.parametrize("scorer", ["exact_match", "f1", "chrf", "numeric"])
def test_of_a_pattern_the_last_match_is_the_answer_and_none_cannot_be_read(scorer: Scorer) -> None:
    pattern = r"Answer: (\S+)"
    for said in ("Answer: 7", "Answer: 8? No. Answer: 7 it is, not 9"):
        found = score_answer(said, "7", scorer=scorer, answer_pattern=pattern)
        assert (found.value, found.is_parsed) == (pytest.approx(1.0, abs=ROUNDING), True)
    assert score_answer("7", "7", scorer=scorer, answer_pattern=pattern) == Scored(0.0, False)
    assert score_answer("Answer: 8", "7", scorer=scorer, answer_pattern=pattern) == Scored(0.0, True)


def test_white_space_alone_cannot_be_read() -> None:
    assert score_answer(" \n", "Lima", scorer="exact_match") == Scored(0.0, False)
    assert score_answer(" \n", "Lima", scorer="chrf") == Scored(0.0, False)

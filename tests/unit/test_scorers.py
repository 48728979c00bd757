"""Scores of generated answers: trimmed equality, and chrF2 worked by hand."""

import pytest
from sacrebleu.metrics.chrf import CHRF

from trainer.evaluation.scorers import score_answer

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
    assert score_answer(answer, target, scorer="exact_match") == score


def test_chrf_weighs_recall_over_precision_by_four() -> None:
    # Answer "ab", target "abc".  Letters: 2 of 2 right, 2 of 3 found.  Pairs: 1 of 1, 1 of 2.  The answer has no
    # longer n-grams.  P = 1, R = (2/3 + 1/2) / 2 = 7/12.  F2 = 5 P R / (4 P + R) = (35/12) / (55/12) = 7/11.
    assert score_answer("ab", "abc", scorer="chrf") == pytest.approx(7 / 11, abs=ROUNDING)
    # The other way round: P = 7/12, R = 1: (35/12) / (28/12 + 12/12) = 35/40.
    assert score_answer("abc", "ab", scorer="chrf") == pytest.approx(35 / 40, abs=ROUNDING)


def test_chrf_is_a_share_that_goes_from_nothing_to_everything() -> None:
    assert score_answer("abcdefgh", "abcdefgh", scorer="chrf") == pytest.approx(1.0, abs=ROUNDING)
    assert score_answer("xyz", "abc", scorer="chrf") == 0.0
    assert score_answer("", "abc", scorer="chrf") == 0.0


def test_chrf_sees_no_white_space_but_sees_case() -> None:
    assert score_answer("la casa", " lacasa\n", scorer="chrf") == pytest.approx(1.0, abs=ROUNDING)
    assert score_answer("LA CASA", "la casa", scorer="chrf") == 0.0


def test_chrf_is_sacrebleus_own_with_its_defaults() -> None:
    # signature nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no: chrF2.
    answer, target = "El gato duerme en la casa", "El gato negro dorm\u00eda en casa"
    wanted = CHRF().sentence_score(answer, [target]).score / 100
    assert score_answer(answer, target, scorer="chrf") == wanted
    assert 0.3 < wanted < 0.9
    assert wanted != CHRF(word_order=2).sentence_score(answer, [target]).score / 100

"""Versioned scorers of a generated answer. A change of a formula is a new version in `EvaluationTask.scorer`."""

from typing import Literal

from sacrebleu.metrics.chrf import CHRF

_CHRF2 = CHRF(char_order=6, word_order=0, beta=2)


def score_answer(answer: str, target: str, *, scorer: Literal["exact_match", "chrf"]) -> float:
    """Score in [0, 1].

    exact_match@1: equal after trimming white space. chrf@1: sentence chrF2 (Popovic 2015) as sacrebleu computes
    it, with character 6-grams and beta 2, divided by 100.
    """
    match scorer:
        case "exact_match":
            return float(answer.strip() == target.strip())
        case "chrf":
            return float(_CHRF2.sentence_score(answer, [target]).score) / 100.0

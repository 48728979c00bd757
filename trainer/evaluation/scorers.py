"""Versioned scorers of a generated answer. A change of a formula is a new version in `EvaluationTask.scorer`."""

import re
import string
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal

from sacrebleu.metrics.chrf import CHRF

from trainer.config.data_schema import Scorer

_CHRF2 = CHRF(char_order=6, word_order=0, beta=2)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Scored:
    """What an answer is worth, in [0, 1], and whether there was anything to read in it."""

    value: float
    is_parsed: bool


def score_answer(answer: str, target: str, *, scorer: Scorer, answer_pattern: str | None = None) -> Scored:
    """Score an answer.

    exact_match@1: equal after trimming white space. f1@1: harmonic mean of precision and recall of the words, without
    case, punctuation and articles (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1). numeric@1: the last number
    of the answer equals the last number of the target, thousands separators aside. chrf@1: sentence chrF2 (Popovic
    2015) as sacrebleu computes it, with character 6-grams and beta 2, divided by 100.

    Args:
        answer_pattern: regular expression whose one group, in its last match, is the answer.
    """
    if answer_pattern is not None:
        matches = re.findall(answer_pattern, answer)
        if not matches:
            return Scored(0.0, False)
        answer = matches[-1]
    match scorer:
        case "numeric":
            said, wanted = _last_number(answer), _last_number(target)
            return Scored(float(said is not None and said == wanted), said is not None)
        case "exact_match":
            value = float(answer.strip() == target.strip())
        case "f1":
            value = _word_f1(answer, target)
        case "chrf":
            value = float(_CHRF2.sentence_score(answer, [target]).score) / 100.0
    return Scored(value, bool(answer.strip()))


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _words(text: str) -> list[str]:
    return _ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _word_f1(answer: str, target: str) -> float:
    said, wanted = _words(answer), _words(target)
    if not said or not wanted:
        return float(said == wanted)
    num_common = (Counter(said) & Counter(wanted)).total()
    return 2 * num_common / (len(said) + len(wanted))

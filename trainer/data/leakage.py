"""Held-out examples that are also trained on: word for word, with another answer, or nearly.

Held-out texts are few and are indexed; training texts stream past the index once and are not kept.
Exact: every pair at or above the similarity is found, nothing below it is reported, and no random
choice is involved. Knows nothing of templates, files and tokens.
"""

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["same", "same prompt", "nearly the same"]
Shingle = tuple[str, ...]

SHINGLE_WORDS = 5
"""Words in a row that count as one feature of a text."""

MIN_PROMPT_WORDS = 5
"""Shortest prompt, in words, that says by itself which example it is. "Yes or no" does not."""

MAX_NAMED_IDS = 5

WORDING: dict[Kind, str] = {"same": "word for word", "same prompt": "with another answer", "nearly the same": "nearly"}
"""How a summary calls each kind, strongest evidence first."""

_MARK = re.compile(r"(?P<word>[-*/%](?=\s*\d)|[\u3040-\u30ff\u3400-\u9fff])|[^\w\s]|_")
"""What is not plainly a part of a word. `word`: operators before a number, Chinese and Japanese characters."""

_OPERATOR = re.compile(r"[-*/%]\s*\d")
"""Only before a number is such a mark a word."""

_MINUS = dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-")
"""Hyphens, dashes and the minus sign, by code point."""

_ROUNDING_SLACK = 1e-9
"""Above the rounding error of similarity * shingles, so that a prefix is never too short by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A held-out example and the training example that gives most of it away."""

    evaluation: str
    example_id: str

    text: str
    """The held-out text, as it was given."""

    kind: Kind
    """same: all words. same prompt: all words of the prompt, another answer. nearly the same: neither, but similar."""

    similarity: float
    """Jaccard similarity of the word 5-grams of both whole texts, 0 to 1."""

    train_task: str
    train_id: str


class Leakage:
    """Compares training examples, one after the other, with all held-out ones.

    Pass what an example says, prompt and response together, without what its template says in every example:
    "Is this review positive?" in all texts of a task would make short ones alike, and the same review under another
    instruction different. Held-out and training texts need their parts in one order, the prompt's first.

    Similarity is |A & B| / |A | B| of the sets A, B of word 5-grams of both texts, the features of Lee et al.
    2022 (arXiv 2107.06499, section 4.2). A text of fewer than five words is the same as another or different.

    Candidates come from prefix filtering (Chaudhuri et al. 2006, "A primitive operator for similarity joins";
    Bayardo et al. 2007, "Scaling up all pairs similarity search"), not from MinHash: similarity >= s needs
    |A & B| >= s * |A | B| >= s * |A|, so B holds at least one of any |A| - ceil(s * |A|) + 1 shingles of A.
    Only that many of each held-out text are indexed, the rarest ones, and each hit is verified. No pair is
    missed; LSH with 16 bands of 8 rows would miss (1 - s^8)^16 of them: 5 % at s = 0.8, 0.01 % at 0.9.
    """

    def __init__(
        self,
        heldout: Mapping[str, Sequence[tuple[str, str]]],
        *,
        similarity: float,
        prompts: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Index the held-out examples.

        Args:
            heldout: id and text of each example, by evaluation.
            similarity: from which two texts are nearly the same. 0: each pair that shares a shingle.
            prompts: the prompt's part of the text, by evaluation and id; "same prompt" is looked for among these only.
        """
        self._similarity = similarity
        self._heldout = [(name, example_id, text) for name, texts in heldout.items() for example_id, text in texts]
        self._by_words: dict[str, list[int]] = {}
        self._by_prompt: dict[str, list[int]] = {}
        self._best: dict[int, Overlap] = {}
        for index, (evaluation, example_id, text) in enumerate(self._heldout):
            if words := normalised(text):
                self._by_words.setdefault(words, []).append(index)
            prompt = normalised((prompts or {}).get(evaluation, {}).get(example_id, ""))
            if prompt.count(" ") + 1 >= MIN_PROMPT_WORDS:
                self._by_prompt.setdefault(prompt, []).append(index)
        self._with_shingle = self._index()

    def look(self, task: str, example_id: str, text: str, *, prompt: str = "") -> None:
        """Compare one training example. In whatever order they come, `found` is the same."""
        words = normalised(text)
        for index in self._by_words.get(words, ()):
            self._keep(index, "same", 1.0, task=task, train_id=example_id)
        shingles = _shingles(words)
        if self._by_prompt and prompt:
            for index in self._by_prompt.get(normalised(prompt), ()):
                similarity = _jaccard(shingles, _shingles(normalised(self._heldout[index][2])))
                self._keep(index, "same prompt", similarity, task=task, train_id=example_id)
        for candidate in {candidate for shingle in shingles for candidate in self._with_shingle.get(shingle, ())}:
            similarity = _jaccard(shingles, _shingles(candidate))
            if similarity >= self._similarity:
                for index in self._by_words[candidate]:
                    self._keep(index, "nearly the same", similarity, task=task, train_id=example_id)

    def found(self) -> list[Overlap]:
        """One overlap for each held-out example that has any: the strongest kind, then the most similar."""
        return strongest(self._best.values())

    def _index(self) -> dict[Shingle, list[str]]:
        """The held-out texts by their rarest shingles, as many as prefix filtering needs."""
        num_texts = Counter(shingle for words in self._by_words for shingle in _shingles(words))
        with_shingle: dict[Shingle, list[str]] = {}
        for words in self._by_words:
            rarest = sorted(_shingles(words), key=lambda shingle: (num_texts[shingle], shingle))
            # |A| - ceil(s * |A|) + 1; all of them at s = 0.
            prefix = math.floor((1 - self._similarity) * len(rarest) + _ROUNDING_SLACK) + 1
            for shingle in rarest[:prefix]:
                with_shingle.setdefault(tuple(map(sys.intern, shingle)), []).append(words)
        return with_shingle

    def _keep(self, index: int, kind: Kind, similarity: float, *, task: str, train_id: str) -> None:
        evaluation, example_id, text = self._heldout[index]
        overlap = Overlap(
            evaluation=evaluation,
            example_id=example_id,
            text=text,
            kind=kind,
            similarity=similarity,
            train_task=task,
            train_id=train_id,
        )
        if index not in self._best or _weakness(overlap) < _weakness(self._best[index]):
            self._best[index] = overlap


def strongest(overlaps: Iterable[Overlap]) -> list[Overlap]:
    """One overlap for each held-out example: what several `Leakage` found, each in a part of the training data."""
    best: dict[tuple[str, str], Overlap] = {}
    for overlap in overlaps:
        key = overlap.evaluation, overlap.example_id
        if key not in best or _weakness(overlap) < _weakness(best[key]):
            best[key] = overlap
    return sorted(best.values(), key=lambda overlap: (overlap.evaluation, overlap.example_id))


def summary(found: Sequence[Overlap], totals: Mapping[str, int]) -> list[str]:
    """One line for each evaluation with overlaps; `totals` is how many held-out examples each has."""
    lines = []
    for evaluation in sorted({overlap.evaluation for overlap in found}):
        overlaps = [overlap for overlap in found if overlap.evaluation == evaluation]
        counts = Counter(overlap.kind for overlap in overlaps)
        kinds = ", ".join(f"{counts[kind]} {wording}" for kind, wording in WORDING.items() if counts[kind])
        named = ", ".join(overlap.example_id for overlap in overlaps[:MAX_NAMED_IDS])
        more = f" and {len(overlaps) - MAX_NAMED_IDS} more" if len(overlaps) > MAX_NAMED_IDS else ""
        lines.append(
            f"evaluation {evaluation}: {len(overlaps)} of {totals[evaluation]} held-out examples "
            f"{'is' if len(overlaps) == 1 else 'are'} also trained on ({kinds}): "
            f"{'id' if len(overlaps) == 1 else 'ids'} {named}{more}"
        )
    return lines


def normalised(text: str) -> str:
    """The words of a text, one space between them: what two writings of the same text have in common.

    NFKC, case folding, and one space for each run of white space and punctuation. What would make different
    texts equal stays: symbols (+, =, emoji) and an operator before a number (3 - 1, 3 * 1) are words, and
    combining marks belong to their word (vowels of Devanagari or Thai). Chinese and Japanese characters are
    a word each; Thai, Lao and Khmer, written without spaces, are only compared by whole phrases.
    """
    if text.isascii() and not _OPERATOR.search(text):
        return " ".join(text.translate(_ASCII).split())
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    return " ".join(_MARK.sub(_spaced, text.casefold()).split())


def _spaced(mark: re.Match[str]) -> str:
    character = mark[0]
    category = unicodedata.category(character)
    if category == "Cf" or "\ufe00" <= character <= "\ufe0f":  # Invisible: soft hyphens, joiners, emoji variants.
        return ""
    if category.startswith("M"):
        return character
    is_separator = category == "Cc" or category.startswith("P") or character == "`"  # A quotation mark in practice.
    return " " if is_separator and mark.lastgroup != "word" else f" {character} "


def _shingles(normalised_text: str) -> set[Shingle]:
    words = normalised_text.split()
    return set(zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False))


def _jaccard(first: set[Shingle], second: set[Shingle]) -> float:
    num_shared = len(first & second)
    return num_shared / (len(first) + len(second) - num_shared)


def _weakness(overlap: Overlap) -> tuple[int, float, str, str]:
    """Sorts the overlaps of one held-out example, the strongest evidence first; names break ties."""
    return list(WORDING).index(overlap.kind), -overlap.similarity, overlap.train_task, overlap.train_id


def _of_ascii(character: str) -> str:
    """What becomes of one character of an ASCII text without operators: three times as fast as the pattern."""
    return _MARK.sub(_spaced, character.casefold())


_ASCII = {code: _of_ascii(chr(code)) for code in range(128)}

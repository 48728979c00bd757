"""Held-out examples that are also trained on: found as comparing all pairs finds them, and nothing else is."""

import functools
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.data.leakage import Kind, Leakage, Overlap, normalised, summary

REPOSITORY = Path(__file__).resolve().parents[2]
EXACT = 0.0
REVIEW = "A slow and often beautiful film about two sisters who never say what they mean"


@dataclass(frozen=True)
class Content:
    example_id: str
    prompt: str
    response: str

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.response}"


def overlaps(
    heldout: Sequence[Content], train: Sequence[Content], *, evaluation: str = "reviews", similarity: float = 0.8
) -> list[Overlap]:
    leakage = Leakage(
        {evaluation: [(example.example_id, example.text) for example in heldout]},
        similarity=similarity,
        prompts={evaluation: {example.example_id: example.prompt for example in heldout}},
    )
    for example in train:
        leakage.look("train", example.example_id, example.text, prompt=example.prompt)
    return leakage.found()


def kinds(heldout: Content, *train: Content, similarity: float = 0.8) -> list[Kind]:
    return [overlap.kind for overlap in overlaps([heldout], train, similarity=similarity)]


def text(words: str, *, example_id: str = "id") -> Content:
    return Content(example_id, prompt="", response=words)


@functools.cache
def grams(words: str) -> frozenset[str]:
    apart = words.split()
    return frozenset(" ".join(apart[start : start + 5]) for start in range(max(1, len(apart) - 4)))


def jaccard(first: str, second: str) -> float:
    """The definition, written a second time."""
    return len(grams(first) & grams(second)) / len(grams(first) | grams(second))


def invented(generator: random.Random, *, vocabulary: int, length: int) -> list[str]:
    return [f"w{generator.randrange(vocabulary)}" for _ in range(length)]


def altered(generator: random.Random, words: Sequence[str]) -> list[str]:
    """The words after a few edits: replaced, inserted or removed anywhere, or more words at the end."""
    words = list(words)
    for _ in range(generator.randrange(4)):
        place = generator.randrange(len(words) + 1)
        words[place : place + generator.randrange(2)] = invented(
            generator, vocabulary=50, length=generator.randrange(2)
        )
    return words + invented(generator, vocabulary=50, length=generator.randrange(6))


@pytest.mark.parametrize(
    ("heldout", "train"),
    [
        ("It's  a GREAT film!", "its a great film"),  # An apostrophe separates, as every punctuation does.
        ("left", "right"),
        ("3 + 4 = 7", "3 4 7"),
        ("12 - 7", "12 * 7"),
        ("it is -5 outside", "it is 5 outside"),
        ("fine \U0001f600", "fine \U0001f621"),
        ("\u0915\u093f", "\u0915\u0940"),  # Devanagari ki and kii differ by a combining vowel only.
        ("cafe", "caf\u00e9"),
        ("snow_white", "snowwhite"),
        ("", ""),
        ("?!", "?!"),
    ],
)
def test_texts_with_other_words_are_not_the_same(heldout: str, train: str) -> None:
    assert kinds(text(heldout), text(train)) == []


@pytest.mark.parametrize(
    ("heldout", "train"),
    [
        ("yes", "yes"),
        ("It's  a GREAT\tfilm!", "it\u2019s a great film"),
        ("well-known, and so on ...", "Well known \u2014 and so on\u2026"),
        ("STRASSE", "stra\u00dfe"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff26\uff55\uff4c\uff4c \ufb01t", "full fit"),  # Full width letters and the fi ligature.
        ("co\u00adop\u200berate", "cooperate"),
        ("a+b", "a + b"),
        ("it is \u22125 outside", "it is -5 outside"),
        ("1990\u20131995", "1990-1995"),
        ("love \u2764\ufe0f", "love \u2764"),
        ("``quoted''", '"quoted"'),
        ("fill in ____ here", "fill in _ here"),
    ],
)
def test_case_punctuation_spaces_and_unicode_forms_make_no_other_text(heldout: str, train: str) -> None:
    assert kinds(text(heldout), text(train)) == ["same"]


def test_normalised_text_is_words_with_one_space_between() -> None:
    assert normalised("  \u201cHello\u201d,\r\nWORLD! 5%\0 -3") == "hello world 5 - 3"
    assert normalised("\u4f60\u597d\u3002ok") == "\u4f60 \u597d ok"
    assert normalised("\u0915\u093f") == "\u0915\u093f"  # One word, not a letter and its vowel sign.
    assert normalised("") == normalised(" \n...") == ""


def test_prompts_are_compared_only_where_both_sides_give_them() -> None:
    leakage = Leakage({"reviews": [("h", f"{REVIEW} positive")]}, similarity=1.0)
    leakage.look("train", "t", f"{REVIEW} negative", prompt=REVIEW)
    assert leakage.found() == []
    leakage = Leakage({"reviews": [("h", f"{REVIEW} positive")]}, similarity=1.0, prompts={"reviews": {"h": REVIEW}})
    leakage.look("train", "t", f"{REVIEW} negative")
    assert leakage.found() == []
    leakage.look("train", "t", f"{REVIEW} negative", prompt=REVIEW)
    assert [overlap.kind for overlap in leakage.found()] == ["same prompt"]


def test_where_the_prompt_ends_makes_no_other_text() -> None:
    assert kinds(Content("h", "Two wrongs", "make no right."), Content("t", "Two wrongs make", "no right")) == ["same"]


def test_the_same_long_prompt_with_another_answer_is_a_kind_of_its_own() -> None:
    question = Content("h", "Which bird's young is a squab?", "A pigeon's")
    assert kinds(question, Content("t", "which bird's young is a squab", "the dove, I think, and no other")) == [
        "same prompt"
    ]
    assert kinds(question, Content("t", "which bird's nest is a squab", "A pigeon's")) == []


def test_prompts_need_five_words_to_be_the_same_prompt() -> None:
    four, five = "is it any good", "is it really any good"
    assert kinds(Content("h", four, "yes"), Content("t", four, "no")) == []
    assert kinds(Content("h", five, "yes"), Content("t", five, "no")) == ["same prompt"]


def test_similarity_counts_from_the_threshold_on() -> None:
    # 8 words are 4 shingles and 9 words 5, so the similarity is 4/5. The tenth word makes it 4/6.
    heldout = text("one two three four five six seven eight")
    (overlap,) = overlaps([heldout], [text(f"{heldout.response} nine")])
    assert overlap.kind == "nearly the same"
    assert overlap.similarity == pytest.approx(0.8, abs=EXACT)
    assert kinds(heldout, text(f"{heldout.response} nine ten")) == []
    assert kinds(heldout, text(f"{heldout.response} nine"), similarity=0.81) == []


def test_texts_shorter_than_a_shingle_are_the_same_or_different() -> None:
    assert kinds(text("one two three four"), text("one two three four five"), similarity=0.1) == []
    assert kinds(text("one two three four"), text("one two three"), similarity=0.1) == []
    assert kinds(text("one two three four"), text("One, two, three, four!"), similarity=1.0) == ["same"]


def test_equal_shingles_in_another_order_are_only_nearly_the_same() -> None:
    # Going round a loop of five words once or twice passes the same five shingles.
    loop = "a b c d e"
    (overlap,) = overlaps([text(f"{loop} {loop}")], [text(f"{loop} {loop} {loop}")], similarity=1.0)
    assert (overlap.kind, overlap.similarity) == ("nearly the same", 1.0)


def test_an_instruction_in_every_text_makes_no_leak_of_different_examples() -> None:
    # Even where it is passed, against advice: 9 shared words against 15 own ones.
    instruction = "Is this review of a film positive or negative?"
    generator = random.Random(0)
    different = [" ".join(invented(generator, vocabulary=500, length=15)) for _ in range(60)]
    heldout = [Content(f"h{n}", f"{instruction} {words}", "yes") for n, words in enumerate(different[:30])]
    train = [Content(f"t{n}", f"{instruction} {words}", "yes") for n, words in enumerate(different[30:])]
    assert overlaps(heldout, train) == []


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_random_texts_overlap_as_in_a_comparison_of_all_pairs(similarity: float) -> None:
    # The expected recall is 1, not that of a sketch: prefix filtering misses nothing.
    generator = random.Random(7)
    heldout = [" ".join(invented(generator, vocabulary=50, length=generator.randrange(1, 70))) for _ in range(150)]
    heldout += [" ".join(altered(generator, words.split())) for words in heldout[:50]]
    train = [" ".join(altered(generator, generator.choice(heldout).split())) for _ in range(600)]
    expected = {}
    for index, kept in enumerate(heldout):
        best = max(jaccard(kept, trained) for trained in train)
        if kept in train or best >= similarity:
            expected[f"{index:03}"] = ("same" if kept in train else "nearly the same", best)
    found = overlaps(
        [text(words, example_id=f"{index:03}") for index, words in enumerate(heldout)],
        [text(words, example_id=str(index)) for index, words in enumerate(train)],
        similarity=similarity,
    )
    assert {overlap.example_id: (overlap.kind, overlap.similarity) for overlap in found} == expected
    num_near = sum(kind == "nearly the same" for kind, _ in expected.values())
    assert num_near >= 20 or similarity == 1.0


@pytest.mark.parametrize("num_shingles", range(1, 41))
def test_a_pair_exactly_at_the_threshold_is_never_lost_to_rounding(num_shingles: int) -> None:
    # A cut-off text shares k of n shingles: Jaccard k / n, which is also the threshold. The words that
    # remain are those in every other held-out text, so none of them is among the rarest.
    words = [f"w{n}" for n in range(num_shingles + 4)]
    for num_shared in range(1, num_shingles + 1):
        cut = " ".join(words[: num_shared + 4])
        others = [text(f"{cut} x{n}", example_id=f"x{n}") for n in range(3)]
        heldout = [text(" ".join(words)), *others]
        found = overlaps(heldout, [text(cut)], similarity=num_shared / num_shingles)
        assert "id" in {overlap.example_id for overlap in found}, num_shared


def test_only_the_strongest_overlap_of_an_example_is_told_in_any_order() -> None:
    heldout = Content("h", REVIEW, "positive")
    train = [
        Content("near", f"{REVIEW} to each other", "positive"),
        Content("nearer", f"Yes: {REVIEW}", "positive"),
        Content("other answer", REVIEW, "none of all the answers that there are"),
        Content("same, later name", REVIEW.upper(), "positive"),
        Content("same, earlier", REVIEW, "Positive!"),
    ]
    expected = ["near", "nearer", "other answer", "same, later name", "same, earlier"]
    for count, strongest in enumerate(expected, start=1):
        for order in itertools.permutations(train[:count]):
            (overlap,) = overlaps([heldout], order, similarity=0.6)
            assert overlap.train_id == strongest
    assert overlap == Overlap(
        evaluation="reviews",
        example_id="h",
        text=f"{REVIEW} positive",
        kind="same",
        similarity=1.0,
        train_task="train",
        train_id="same, earlier",
    )


def test_a_text_in_two_evaluations_is_told_of_both() -> None:
    heldout = {"prose": [("p", REVIEW)], "old": [("b", f"{REVIEW}."), ("a", REVIEW)]}
    for trained, kind in ((REVIEW, "same"), (f"{REVIEW} now", "nearly the same")):
        leakage = Leakage(heldout, similarity=0.8)
        leakage.look("reviews", "id", trained)
        found = [(overlap.evaluation, overlap.example_id, overlap.kind) for overlap in leakage.found()]
        assert found == [("old", "a", kind), ("old", "b", kind), ("prose", "p", kind)]


def test_nothing_held_out_or_nothing_trained_on_is_no_overlap() -> None:
    assert overlaps([], [text(REVIEW)]) == overlaps([text(REVIEW)], []) == []
    assert Leakage({}, similarity=0.8).found() == []
    assert kinds(text(REVIEW), text(""), text("yes"), similarity=0.0) == []


def test_a_summary_counts_and_names_the_examples_of_each_evaluation() -> None:
    wanted: list[tuple[str, str, Kind]] = [
        ("prose", "p", "same prompt"),
        *[("reviews", name, "same" if name == "a" else "nearly the same") for name in "abc"],
        *[("tips", str(number), "same") for number in range(7)],
    ]
    found = [
        Overlap(evaluation=name, example_id=i, text=i, kind=kind, similarity=0.9, train_task="t", train_id="i")
        for name, i, kind in wanted
    ]
    assert summary(found, {"prose": 20, "reviews": 400, "tips": 7, "untouched": 5}) == [
        "evaluation prose: 1 of 20 held-out examples is also trained on (1 with another answer): id p",
        "evaluation reviews: 3 of 400 held-out examples are also trained on (1 word for word, 2 nearly): ids a, b, c",
        "evaluation tips: 7 of 7 held-out examples are also trained on (7 word for word): ids 0, 1, 2, 3, 4 and 2 more",
    ]
    assert summary([], {"prose": 20}) == []


def test_the_hash_seed_of_the_process_changes_nothing() -> None:
    program = (
        "import random; from trainer.data.leakage import Leakage\n"
        "draw = random.Random(3)\n"
        "texts = [' '.join(draw.choices('abcd', k=draw.randrange(4, 30))) for _ in range(400)]\n"
        "leakage = Leakage({'e': [(str(n), t) for n, t in enumerate(texts[:200])]}, similarity=0.1)\n"
        "for n, t in enumerate(texts[200:]): leakage.look('t', str(n), t)\n"
        "print(*leakage.found(), sep='\\n')\n"
    )
    told = [
        subprocess.check_output(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, cwd=REPOSITORY
        )
        for seed in ("0", "1", "2")
    ]
    assert told[0] == told[1] == told[2]
    assert len(told[0].splitlines()) >= 50

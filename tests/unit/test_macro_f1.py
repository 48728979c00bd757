"""Macro-F1 worked by hand, against a slow second way, and its interval calibrated by simulation."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from trainer.evaluation.macro_f1 import PERCENTILE_OF_EXAMPLES, macro_f1, paired_macro_f1
from trainer.evaluation.statistics import EXACT_UNCHANGED

ROUNDING = 1e-12

# Labels are single letters, so that a string is a sequence of them.


@pytest.mark.parametrize(
    ("targets", "answers", "expected"),
    [
        # F1_a: TP 2, FP 1, FN 1: 4/6.  F1_b: TP 1, FP 1, FN 1: 2/4.  (2/3 + 1/2) / 2.
        ("aaabb", "aabab", 7 / 12),
        # a: TP 2, FP 1, FN 0: 4/5.  b: TP 1, FP 0, FN 1: 2/3.  c: TP 1, FP 1, FN 1: 2/4.  (4/5 + 2/3 + 1/2) / 3.
        ("aabbcc", "aabcca", 59 / 90),
        # c is never predicted and counts 0.  a: TP 2, FP 1: 4/5.  b: TP 1: 2/2.  (4/5 + 1 + 0) / 3.
        ("aabc", "aaba", 3 / 5),
        # x is not in the targets and counts 0.  a: TP 1, FN 1: 2/3.  b: TP 2: 1.  (2/3 + 1 + 0) / 3.
        ("aabb", "axbb", 5 / 9),
        # a: TP 1, FP 0, FN 2: 2/4.  b: TP 1, FP 2, FN 0: 2/4.  The other formula, the F1 of averages, would say 2/3:
        # the precisions 1 and 1/3, and the recalls 1/3 and 1, have mean 2/3.
        ("aaab", "abbb", 1 / 2),
        ("abc", "bca", 0.0),
        ("abc", "abc", 1.0),
        ("a", "a", 1.0),
        ("aa", "bb", 0.0),
    ],
)
def test_macro_f1_is_what_it_comes_to_by_hand(targets: str, answers: str, expected: float) -> None:
    assert macro_f1(targets, answers) == pytest.approx(expected, abs=ROUNDING)


def brute_force(targets: Sequence[str], answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of each class, one class at a time."""
    pairs = list(zip(targets, answers, strict=True))
    f1 = []
    for label in {*targets, *answers}:
        said, wanted = [t for t, a in pairs if a == label], [a for t, a in pairs if t == label]
        precision = said.count(label) / len(said) if said else 0.0
        recall = wanted.count(label) / len(wanted) if wanted else 0.0
        f1.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(f1) / len(f1)


def random_labels(random: np.random.Generator, num_examples: int, *, labels: str) -> list[str]:
    return random.choice(list(labels), size=num_examples).tolist()


@pytest.mark.parametrize("num_examples", [1, 2, 5, 40])
def test_macro_f1_agrees_with_precision_and_recall_on_random_labels(num_examples: int) -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        targets, answers = (random_labels(random, num_examples, labels=labels) for labels in ("abcde", "abcdxy"))
        assert macro_f1(targets, answers) == pytest.approx(brute_force(targets, answers), abs=ROUNDING)


def test_labels_that_differ_only_in_white_space_or_a_null_are_different() -> None:
    assert macro_f1(["a", "a ", "a\0"], ["a ", "a\0", "a"]) == 0


def test_before_and_after_are_macro_f1_of_each_side_and_the_difference_is_between_them() -> None:
    # Before 7/12 as above; after, one of three a is called b.  a: TP 2, FN 1: 4/5.  b: TP 2, FP 1: 4/5.
    result = paired_macro_f1("aaabb", "aabab", "aabbb")
    assert result.num_examples == 5
    assert (result.before, result.after) == pytest.approx((7 / 12, 4 / 5), abs=ROUNDING)
    assert result.difference == pytest.approx(13 / 60, abs=ROUNDING)
    assert result.method == PERCENTILE_OF_EXAMPLES


def test_a_label_that_only_one_side_gives_counts_on_that_side_alone() -> None:
    # Before, the classes are a and b, both right: 1.  After, x is one more: a 2/3, b 1, x 0.
    result = paired_macro_f1("aabb", "aabb", "axbb")
    assert (result.before, result.after) == pytest.approx((1.0, 5 / 9), abs=ROUNDING)


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.6, 0.0, 1.0), (0.4, 2 / 3, 2 / 3)])
def test_the_interval_of_two_examples_is_what_it_comes_to_by_hand(confidence: float, low: float, high: float) -> None:
    # Targets ab; before aa, after ab. Draws of two: {a, a} 1/4: before 1, after 1 (no b, so no F1 of b): 0.
    # {b, b} 1/4: before 0, after 1: 1.  {a, b} 1/2: before (2/3 + 0) / 2, after 1: 2/3.  So the quarters at 0 and 1 are
    # reached by the 20th and 80th percentile, and not by the 30th and 70th.
    result = paired_macro_f1("ab", "aa", "ab", confidence=confidence)
    assert (result.interval_low, result.interval_high) == pytest.approx((low, high), abs=ROUNDING)


def test_a_model_that_is_always_right_scores_one_in_every_draw() -> None:
    result = paired_macro_f1("abcd" * 5, "bcda" * 5, "abcd" * 5)
    assert (result.difference, result.interval_low, result.interval_high) == (1, 1, 1)


QUANTILE_ERROR = 0.25
"""In standard deviations of the draws. Of 2,000 draws the 2.5 % quantile has a standard error of
sqrt(0.025 * 0.975 / 2000) / 0.058 = 0.06 of them; the difference of two such, 0.085."""


def test_the_interval_is_that_of_examples_drawn_one_by_one() -> None:
    # A rare class (r, of 3 examples) and a stray label (x, one answer before) are missing from many draws.
    random = np.random.default_rng(2)
    targets = [*random_labels(random, 57, labels="aab"), *"rrr"]
    before = [*random_labels(random, 57, labels="ab"), *"rax"]
    after = [*(t if random.random() < 0.6 else "a" for t in targets[:57]), *"rra"]
    changes = []
    for _ in range(2_000):
        drawn = random.integers(0, 60, size=60).tolist()
        sides = [[column[index] for index in drawn] for column in (targets, before, after)]
        changes.append(brute_force(sides[0], sides[2]) - brute_force(sides[0], sides[1]))
    low, high = np.quantile(changes, [0.025, 0.975])
    tolerance = QUANTILE_ERROR * float(np.std(changes))
    result = paired_macro_f1(targets, before, after)
    assert (result.interval_low, result.interval_high) == pytest.approx((low, high), abs=tolerance)


def test_the_interval_covers_the_true_difference_at_200_examples_of_3_unequal_classes() -> None:
    # Class c has share p. A model is right with probability q, else says one of the other two. Then c is the answer
    # with probability s = p q + (1 - p) (1 - q) / 2, and F1_c = 2 p q / (p + s).  Before q = 0.6; after, half of the
    # answers stay and half are given anew with q = 0.9: q = 0.75.
    # 1,000 samples at 95 %: standard error of the coverage 0.007, so 0.93 and 0.97 are 2.9 of them away.
    shares = np.array([0.6, 0.3, 0.1])

    def true_score(q: float) -> float:
        return float(np.mean(2 * shares * q / (shares + shares * q + (1 - shares) * (1 - q) / 2)))

    random = np.random.default_rng(3)

    def answers_to(targets: np.ndarray, *, q: float) -> np.ndarray:
        shift = np.where(random.random(200) < q, 0, random.integers(1, 3, size=200))
        return (targets + shift) % 3

    truth, num_covered = true_score(0.75) - true_score(0.6), 0
    for seed in range(1_000):
        targets = random.choice(3, size=200, p=shares)
        before = answers_to(targets, q=0.6)
        after = np.where(random.random(200) < 0.5, before, answers_to(targets, q=0.9))
        columns = [[f"label {number}" for number in column.tolist()] for column in (targets, before, after)]
        result = paired_macro_f1(*columns, seed=seed, num_draws=400)
        num_covered += result.interval_low <= truth <= result.interval_high
    assert 0.93 < num_covered / 1_000 < 0.97


@pytest.mark.parametrize("num_examples", [2, 50, 400])
def test_unchanged_answers_give_an_interval_of_width_zero_that_says_why(num_examples: int) -> None:
    random = np.random.default_rng(4)
    targets, answers = (random_labels(random, num_examples, labels="abc") for _ in range(2))
    result = paired_macro_f1(targets, answers, tuple(answers))
    assert (result.difference, result.interval_low, result.interval_high) == (0, 0, 0)
    assert result.method == EXACT_UNCHANGED


def test_answers_that_trade_places_tie_without_an_exact_interval() -> None:
    # Before: a TP 3, FN 1: 6/7; b TP 4, FP 1: 8/9. After, another a is the wrong one: the same counts.
    result = paired_macro_f1("aaaabbbb" * 5, "baaabbbb" * 5, "abaabbbb" * 5)
    assert result.difference == 0
    assert result.interval_low < 0 < result.interval_high
    assert result.method == PERCENTILE_OF_EXAMPLES


def test_wrong_answers_that_change_and_stay_wrong_change_nothing() -> None:
    result = paired_macro_f1("abc" * 10, "bca" * 10, "cab" * 10)
    assert (result.difference, result.interval_low, result.interval_high) == (0, 0, 0)


def test_improvement_and_worsening_are_seen_and_mirror_each_other() -> None:
    targets, always_a = "aaabbc" * 10, "a" * 60
    better = paired_macro_f1(targets, always_a, "aaabbb" * 10)
    worse = paired_macro_f1(targets, "aaabbb" * 10, always_a)
    assert 0 < better.interval_low < better.difference < better.interval_high
    assert worse.difference == -better.difference
    assert worse.interval_low < worse.difference < worse.interval_high < 0


def test_the_order_of_the_examples_has_no_effect() -> None:
    random = np.random.default_rng(5)
    columns = [random_labels(random, 50, labels="abc") for _ in range(3)]
    order = random.permutation(50).tolist()
    assert paired_macro_f1(*([column[index] for index in order] for column in columns)) == paired_macro_f1(*columns)


def test_a_wider_confidence_gives_a_wider_interval_and_another_seed_another() -> None:
    random = np.random.default_rng(6)
    columns = [random_labels(random, 50, labels="abc") for _ in range(3)]
    narrow, wide = (paired_macro_f1(*columns, confidence=confidence) for confidence in (0.5, 0.99))
    assert wide.interval_low < narrow.interval_low < narrow.interval_high < wide.interval_high
    assert paired_macro_f1(*columns, seed=1, num_draws=99) != paired_macro_f1(*columns, seed=2, num_draws=99)
    assert paired_macro_f1(*columns, seed=1, num_draws=99) == paired_macro_f1(*columns, seed=1, num_draws=99)


def test_many_examples_of_many_classes_are_drawn_a_few_megabytes_at_a_time() -> None:
    # Nearly every example is of its own kind: 2,000 draws of 3,000 counts of 8 bytes at once would be 48 MB.
    random = np.random.default_rng(7)
    columns = [[f"label {number}" for number in random.integers(0, 300, size=3_000)] for _ in range(3)]
    tracemalloc.start()
    try:
        paired_macro_f1(*columns)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16e6


@pytest.mark.parametrize(
    ("targets", "before", "after", "confidence", "message"),
    [
        ("a", "a", "a", 0.95, "1 example"),
        ("", "", "", 0.95, "0 example"),
        ("ab", "ab", "a", 0.95, "one length each: 2, 2, 1"),
        ("ab", "a", "ab", 0.95, "one length each: 2, 1, 2"),
        ("a", "ab", "ab", 0.95, "one length each: 1, 2, 2"),
        ("ab", "ab", "ab", 95.0, "confidence"),
        ("ab", "ab", "ab", 0.0, "confidence"),
    ],
)
def test_what_no_interval_can_be_made_of_is_refused(
    targets: str, before: str, after: str, confidence: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_macro_f1(targets, before, after, confidence=confidence)


@pytest.mark.parametrize(("targets", "answers"), [("", ""), ("ab", "a"), ("a", "ab")])
def test_macro_f1_of_nothing_or_of_unequal_lengths_is_refused(targets: str, answers: str) -> None:
    with pytest.raises(ValueError, match="one length above 0"):
        macro_f1(targets, answers)

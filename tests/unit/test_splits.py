"""The held-out side of an example follows from its content alone, for ever."""

import itertools
import random

import pytest

from trainer.data.splits import is_held_out

CONTENTS = [f"example number {n}" for n in range(20_000)]
DEVIATIONS = 5
"""Standard deviations of a binomial count that a fair hash may be off: once in 1.7 million."""


def held_out(contents: list[str], *, share: float, seed_text: str = "heldout") -> set[str]:
    return {content for content in contents if is_held_out(content, share=share, seed_text=seed_text)}


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.95])
def test_about_the_wanted_share_is_held_out(share: float) -> None:
    # n = 20000 throws: mean n * share, standard deviation sqrt(n * share * (1 - share)).
    # For share 0.05: 1000 and sqrt(950) = 30.8, so 846 to 1154.
    deviation = (len(CONTENTS) * share * (1 - share)) ** 0.5
    assert abs(len(held_out(CONTENTS, share=share)) - len(CONTENTS) * share) < DEVIATIONS * deviation


def test_the_answer_is_fixed_for_ever() -> None:
    # BLAKE2b of 8 bytes over "heldout\0example number n", read big endian, below half of 2^64. Were one of these to
    # change, examples that were held out in an earlier run would be trained on in the next.
    assert [is_held_out(content, share=0.5) for content in CONTENTS[:12]] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
        True,
        True,
        False,
        False,
        True,
    ]
    assert sorted(held_out(CONTENTS[:100], share=0.05)) == [
        "example number 0",
        "example number 25",
        "example number 27",
        "example number 51",
        "example number 59",
        "example number 87",
        "example number 96",
    ]


def test_neither_order_nor_company_matters() -> None:
    shuffled = random.Random(1).sample(CONTENTS, 5_000)
    assert held_out(shuffled, share=0.1) == held_out(CONTENTS, share=0.1) & set(shuffled)


def test_identical_contents_land_on_one_side() -> None:
    assert len({is_held_out("".join(["a ", "film"]), share=0.3) for _ in range(100)}) == 1
    doubled = [*CONTENTS[:500], *CONTENTS[:500]]
    trained = [content for content in doubled if not is_held_out(content, share=0.3)]
    assert set(trained).isdisjoint(held_out(doubled, share=0.3))
    assert len(trained) == 2 * len(set(trained))


def test_a_larger_share_holds_out_all_that_a_smaller_one_does() -> None:
    shares = (0.0, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0)
    parts = [held_out(CONTENTS, share=share) for share in shares]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(parts))
    assert (len(parts[0]), len(parts[-1])) == (0, len(CONTENTS))


def test_another_seed_text_chooses_independently() -> None:
    first, second = held_out(CONTENTS, share=0.5), held_out(CONTENTS, share=0.5, seed_text="other")
    # Two independent halves share a quarter: 5000 of 20000, deviation sqrt(20000 * 0.25 * 0.75) = 61.2.
    assert abs(len(first & second) - 5_000) < DEVIATIONS * 61.2


def test_contents_that_differ_little_or_not_in_ascii_are_told_apart() -> None:
    contents = [f"{n}\u00e9{mark}" for n in range(2_000) for mark in ("", " ", "\n", "\0")]
    # n = 8000: mean 4000, deviation sqrt(8000 / 4) = 44.7.
    chosen = held_out(contents, share=0.5)
    assert abs(len(chosen) - 4_000) < DEVIATIONS * 44.7
    # Four independent marks agree for one number in eight: 250 of 2000, deviation sqrt(2000 * 7 / 64) = 14.8.
    sides = [{f"{n}\u00e9{mark}" in chosen for mark in ("", " ", "\n", "\0")} for n in range(2_000)]
    assert abs(sum(len(side) == 1 for side in sides) - 250) < DEVIATIONS * 14.8


def test_a_share_outside_zero_to_one_is_our_own_mistake() -> None:
    for share in (-0.1, 1.1):
        with pytest.raises(AssertionError):
            is_held_out("a", share=share)

"""The short way through ASCII texts gives the words that the pattern gives."""

import string

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.leakage import _MARK, _spaced, normalised

PARTS = st.text(string.printable, max_size=4) | st.sampled_from(
    ["-", " 3", "*", "% 5", "a-b", "x/2", "\x00", "_", "`", "+"]
)


@settings(deadline=None, derandomize=True, max_examples=2000, database=None)
@given(st.lists(PARTS, max_size=12))
def test_ascii_texts_have_the_same_words_both_ways(parts: list[str]) -> None:
    text = "".join(parts)
    assert normalised(text) == " ".join(_MARK.sub(_spaced, text.casefold()).split())


def test_operators_before_numbers_stay_words() -> None:
    assert normalised("3 - 1") == "3 - 1" != normalised("3 * 1")
    assert normalised("well-known, a - b") == "well known a b"

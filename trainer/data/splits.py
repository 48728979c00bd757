"""Which examples of a source are held out, where the user names no held-out source.

Pure: the answer is a function of an example's content and of nothing else.
"""

import hashlib

HASH_BYTES = 8


def is_held_out(content: str, *, share: float, seed_text: str = "heldout") -> bool:
    """Whether an example with this content is held out of training.

    The content is hashed to a fraction in [0, 1), and held out where that lies below `share`. Therefore:
    the answer is fixed for ever, on every machine and in every run; it depends neither on the order nor on the
    other examples, so that data may grow without an example changing sides; two examples with the same content
    land on the same side, so that a duplicate never leaks; and a larger share holds out all that a smaller one does.

    Args:
        content: the example as text. What differs in it may land on different sides.
        share: expected share that is held out, from 0 (none) to 1 (all).
        seed_text: another text gives another, independent choice.
    """
    assert 0.0 <= share <= 1.0, f"share {share}"
    digest = hashlib.blake2b(f"{seed_text}\0{content}".encode(), digest_size=HASH_BYTES).digest()
    # An integer below a share of all integers: exact, where a division would round up to 1.
    return int.from_bytes(digest, "big") < share * 2.0 ** (8 * HASH_BYTES)

"""Changes as fine-tuning makes them: skewed losses of texts, bounded scores, questions on one passage.

Each model yields samples of (change, weight) with a known true change, and fixed seeds.
"""

import math
from collections.abc import Iterator

import numpy as np

CHURN, LOW_CHURN = 0.1, 0.02
"""Shares of answers that flip either way."""
NUM_SAMPLES = 10_000
"""Standard error of a coverage of 95 %: sqrt(0.95 * 0.05 / 10000) = 0.002."""
NUM_CLUSTERED_SAMPLES = 2_000
"""Standard error of a rate of 5 %: sqrt(0.05 * 0.95 / 2000) = 0.005."""
QUESTIONS_PER_PASSAGE, INTRA_CLUSTER_CORRELATION = 10, 0.7
FLIPS, SYMMETRIC, SKEWED = "right or wrong", "loss, before and after alike", "loss, skewness 2"

Samples = Iterator[tuple[np.ndarray, np.ndarray]]


def text_losses(num_examples: int, *, skewed: str) -> tuple[float, Samples]:
    """True change a token, and samples of (summed change in nats, tokens). Texts of about 55 tokens, some of 300.

    The change a token has skewness 2 (exponential: few texts get much worse) or 6.2 (lognormal: one in a hundred
    changes ten times as much as the middle one).
    """
    random = np.random.default_rng(num_examples)

    def draw() -> Samples:
        for _ in range(NUM_SAMPLES):
            tokens = np.round(random.lognormal(4.0, 0.8, num_examples)) + 1
            if skewed == "exponential":
                tail = random.exponential(1.0, num_examples) - 1
            else:
                tail = random.lognormal(0.0, 1.0, num_examples) - math.exp(0.5)
            yield tokens * (0.05 + 0.1 * tail), tokens

    return 0.05, draw()


def chrf_scores(num_examples: int, *, worse: float) -> tuple[float, Samples]:
    """True change, and samples of (change, 1): four in ten answers are said anew, from Beta(2, 2 + worse)."""
    random = np.random.default_rng(num_examples)

    def draw() -> Samples:
        for _ in range(NUM_SAMPLES):
            anew = random.random(num_examples) < 0.4
            change = random.beta(2, 2 + worse, num_examples) - random.beta(2, 2, num_examples)
            yield np.where(anew, change, 0.0), np.ones(num_examples)

    return 0.4 * (2 / (4 + worse) - 0.5), draw()


REAL = {
    "loss, skewness 2": lambda n: text_losses(n, skewed="exponential"),
    "loss, skewness 6": lambda n: text_losses(n, skewed="lognormal"),
    "chrF, no true change": lambda n: chrf_scores(n, worse=0.0),
    "chrF, true drop 3.3 points": lambda n: chrf_scores(n, worse=0.4),
}


def passages(num_clusters: int, *, kind: str, churn: float = CHURN, drop: float = 0.0) -> Samples:
    """Samples of (change, weight): a question follows its passage with probability sqrt(0.7), else itself.

    The true change of losses is 0, of right or wrong answers -drop.
    """
    random = np.random.default_rng(num_clusters)
    shape = (num_clusters, QUESTIONS_PER_PASSAGE)

    def draw(shape: tuple[int, int]) -> np.ndarray:
        if kind == FLIPS:
            return random.choice([-1.0, 0.0, 1.0], p=[(churn + drop) / 2, 1 - churn, (churn - drop) / 2], size=shape)
        change = random.exponential(1.0, shape)
        return change - (1 if kind == SKEWED else random.exponential(1.0, shape))

    for _ in range(NUM_CLUSTERED_SAMPLES):
        follows = random.random(shape) < math.sqrt(INTRA_CLUSTER_CORRELATION)
        change = np.where(follows, draw((num_clusters, 1)), draw(shape)).ravel()
        yield change, np.ones(change.size) if kind == FLIPS else 20 + random.integers(0, 40, change.size)

"""One row of a report: what a task measures, and how its number changed."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from trainer.evaluation.verdict_rule import Verdict

Group: TypeAlias = Literal["trained", "base"]
Kind: TypeAlias = Literal["text", "choice", "generate", "classify"]
Change: TypeAlias = Literal["improved", "worsened", "no clear change"]

MACRO_F1 = "macro-F1"
"""Measure of kind classify that is of all examples together, where accuracy is a mean over examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDescription:
    """What a task measures, and how to read its numbers."""

    name: str
    """Unique name; also the name of its records file, except where another row has the same records."""
    capability: str
    """What it is a measure of, in words for the reader. Several rows may share one."""
    group: Group
    """`trained`: a task of the mixture; `base`: an ability from before, never trained on."""
    kind: Kind
    """`text`: loss of given text; `choice`: pick among options; `generate`: answer freely;
    `classify`: pick one of fixed labels with a classification head."""
    measure: str
    """Name of the number: loss, accuracy, exact match, word F1, numeric match, chrF; of kind classify: accuracy or
    macro-F1."""
    unit: str
    """Unit of the number: nats/token, share."""
    higher_is_better: bool
    """False for a loss."""
    margin: float
    """Largest worsening that does not matter, in `unit`."""

    def __post_init__(self) -> None:
        fits = self.measure in ("accuracy", MACRO_F1) if self.kind == "classify" else self.measure != MACRO_F1
        if not fits:
            raise ValueError(f"task {self.name}: kind {self.kind} has no measure {self.measure!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LostExample:
    """An example that the model did better before training than after."""

    prompt: str
    """What the model was given."""
    target: str
    """What it should have said."""
    answer_before: str | None
    """What it said before training."""
    answer_after: str | None
    """What it says now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityRow:
    """One measure before and after, with its interval and what was lost. The first eight fields: `TaskDescription`."""

    name: str
    capability: str
    group: Group
    kind: Kind
    measure: str
    unit: str
    higher_is_better: bool
    margin: float
    num_examples: int
    """Examples joined."""
    num_clusters: int
    """Independent groups of examples; `num_examples` where each stands alone."""
    num_units: float
    """Tokens of a loss per token, otherwise examples: the weight of the row in a mean over rows."""
    before: float
    """The measure before training, in `unit`."""
    after: float
    """The measure after training, in `unit`."""
    difference: float
    """after - before, in `unit`."""
    interval_low: float
    """Lower end of the 95 % interval of `difference`."""
    interval_high: float
    """Upper end of the 95 % interval of `difference`."""
    interval_method: str
    """How the interval was made."""
    standard_error: float
    """Of `difference`, in `unit`."""
    minimal_detectable_effect: float
    """Smallest true change that would be found with 80 % power, in `unit`."""
    num_examples_needed: int
    """Examples at which a model that lost nothing would be shown to be within the margin, with 80 % power."""
    change: Change
    """Which way, if the interval excludes zero. `no clear change` means not shown: it is never evidence of no
    forgetting, since with few examples a large loss can hide inside the interval."""
    p_value: float
    """Two-sided p of no change, by `p_method`."""
    p_method: str
    mid_p: float | None = None
    """McNemar's mid-p, less cautious than the exact one; None where that is not the test."""
    adjusted_p: float | None = None
    """`p_value` corrected for the number of rows in a report: of base rows by Holm (no false loss among them), of
    trained tasks by Benjamini and Hochberg (few false changes among those found). None outside of a report."""
    verdict: Verdict | None = None
    """Whether the worsening is within the margin; None for trained tasks."""
    verdict_reason: str = ""
    """Why, in a few words."""
    num_lost: int | None = None
    """Right before, wrong now. None unless every score is 0 or 1; None for macro-F1, as the accuracy row has it."""
    num_gained: int | None = None
    """Wrong before, right now. None where `num_lost` is."""
    conditional_forgetting: float | None = None
    """Share of what was right before that is wrong now. None where nothing was right, or `num_lost` is None."""
    answer_agreement: float | None = None
    """Share of the examples with the same answer before and after; None where nothing is answered."""
    null_flip_rate: float | None = None
    """Share of the examples whose score flips when the same base is measured in other batches; None: not measured."""
    chance: float | None = None
    """Score of guessing; None for a loss."""
    retention: float | None = None
    """(after - chance) / (before - chance); None for a loss, and where the base was at chance."""
    num_unparsed_before: int | None = None
    """Answers in which there was nothing to read (kind generate): a failure of format, not of knowledge."""
    num_unparsed_after: int | None = None
    """As `num_unparsed_before`."""
    bits_per_byte_before: float | None = None
    """Loss in bits per UTF-8 byte (kind text), which does not depend on the tokenizer."""
    bits_per_byte_after: float | None = None
    """As `bits_per_byte_before`."""
    kl_nats_per_token: float | None = None
    """KL(base || model) on the text (kind text), a lower bound: see drift.py; None: not measured."""
    top1_agreement: float | None = None
    """Share of its tokens at which both hold the same token for the most likely one."""
    lost: tuple[LostExample, ...] = ()
    """Up to 200 examples whose score fell, largest fall first, then by id. Empty for kind text and for macro-F1."""

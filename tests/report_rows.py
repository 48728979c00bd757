"""Rows of made-up reports: one for each verdict, and texts that no page may take for markup."""

from dataclasses import replace

from trainer.evaluation.capability_row import CapabilityRow, LostExample
from trainer.evaluation.report import ForgettingReport, build_report

HOSTILE = "\"><script>x</script></div>\n\n'&amp;"
NOT_SHOWN = "a\x00b\x1bc\u202ed\ud83de\r\nf"

PROSE = CapabilityRow(
    **{"name": "prose", "capability": "prose", "group": "base", "kind": "text", "measure": "loss"},
    **{"unit": "nats/token", "higher_is_better": False, "margin": 0.05, "num_examples": 400, "num_clusters": 400},
    **{"num_units": 9000.0, "before": 4.52, "after": 4.93, "difference": 0.41, "interval_low": 0.38},
    **{"interval_high": 0.44, "interval_method": "skewness-corrected t", "standard_error": 0.01},
    **{"minimal_detectable_effect": 0.03, "num_examples_needed": 123, "change": "worsened"},
    **{"p_value": 1e-6, "p_method": "sign-flip permutation", "kl_nats_per_token": 0.25, "top1_agreement": 0.75},
)
FABLES = replace(PROSE, name="fables", capability="fables", difference=-0.1, interval_low=-0.2, interval_high=-0.04)
FABLES = replace(FABLES, after=4.42, change="improved")
QUIZ = replace(
    PROSE,
    **{"name": "quiz", "capability": "knowledge", "kind": "generate", "measure": "exact match", "unit": "share"},
    **{"higher_is_better": True, "margin": 0.02, "num_examples": 200, "num_examples_needed": 7166, "before": 0.6},
    **{"after": 0.61, "difference": 0.01, "interval_low": -0.03, "interval_high": 0.04},
    **{"change": "no clear change", "p_value": 0.4, "num_lost": 5, "num_gained": 7, "conditional_forgetting": 5 / 120},
    **{"answer_agreement": 0.875, "null_flip_rate": 0.015, "chance": 0.0, "retention": 61 / 60},
    **{"num_unparsed_before": 3, "num_unparsed_after": 11, "kl_nats_per_token": None, "top1_agreement": None},
    lost=(
        LostExample(prompt="Capital of Peru?", target="Lima", answer_before="Lima", answer_after=""),
        LostExample(prompt=HOSTILE, target=f"{HOSTILE}2", answer_before=f"{HOSTILE}3", answer_after=f"{HOSTILE}4"),
        LostExample(prompt=NOT_SHOWN, target="t", answer_before=None, answer_after=None),
    ),
)
KEPT = replace(QUIZ, name="kept", capability="sums", interval_low=-0.01, lost=())
REVIEWS = replace(QUIZ, name="reviews", capability="reviews", group="trained", change="improved", lost=())
PROVENANCE = {"commit": "abc123", "versions": {"torch": "2"}, "note": HOSTILE}


def report_of(*rows: CapabilityRow) -> ForgettingReport:
    """A report of one stage."""
    return build_report(rows, provenance=PROVENANCE)

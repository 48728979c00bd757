"""Classes of runs that must agree, and for each a run with a planted fault that must not.

Cases are short runs of the demo's recipe (real model, real tasks, clipping, decay, warm-up), or of a tiny encoder.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.fleet import Case

TOLERANCE = 1e-5
"""Relative, losses and gradient norms of every step, fp32."""

INT8_TOLERANCE = 1e-3
"""Relative, first loss against the fp32 base: rounding of weights and activations to 8 bits."""

FP16_TOLERANCE = 1e-3
"""Relative, losses and gradient norms of fp16 runs that differ in their loss scale only."""

SHORT = ("training.num_steps=4", "training.warmup_steps=1", "training.examples_per_step=32")
SHORT += ("training.examples_per_device=8",)
ONE = ("layout.strategy=single", "layout.processes=1", *SHORT)
TWO = ("layout.processes=2", *SHORT)
LORA = ("method=lora",)
DROPOUT = ("method=lora", "lora.dropout=0.2")
DORA = ("method=lora", "lora={rank: 4, dora: true, rank_stabilised: true, targets: [q_proj, v_proj]}")
WHOLE = ("method=lora", "lora={rank: 4, targets: [q_proj, v_proj], train_in_full: [embed_tokens]}")
FROZEN = ("freeze={embeddings: true, first_layers: 2, patterns: ['layers.3.mlp']}",)
RECOMPUTE = ("training.activation_checkpointing=true",)
KEEP = ("training.activation_checkpointing=false",)
LABELS = ("objective=classification", "classification.labels=[positive, negative]")
TO_LENGTH = ("data.padding=sequence_length",)
PACKED = ("data.packing=true",)
BY_TOKENS = ("training.examples_per_step=null", "training.tokens_per_step=2048", "training.examples_per_device=8")
FP16 = ("precision", "fp16")


@dataclass(frozen=True, kw_only=True)
class Class:
    """Runs that must agree with a reference."""

    reference: str
    members: tuple[str, ...]
    negatives: tuple[str, ...]
    """Cases with a planted fault, which must deviate by more than the tolerance."""

    tolerance: float = TOLERANCE
    first_loss_only: bool = False
    exact: bool = False
    """Not one bit may differ."""


def zero(stage: int, *extra: str, offload: str = "none") -> tuple[str, ...]:
    """Two ranks under a ZeRO stage."""
    return (f"layout.strategy=zero{stage}", f"layout.offload={offload}", *TWO, *extra)


def ddp(*extra: str) -> tuple[str, ...]:
    """Two ranks under DDP."""
    return ("layout.strategy=ddp", *TWO, *extra)


def cases_on_one_process(encoder: Path) -> dict[str, Case]:
    """By name. 32 examples a step are 4 micro-batches of 8 unless a case says otherwise."""
    return {
        "1 x 4": Case(overrides=ONE),
        "1 x 1": Case(overrides=(*ONE, "training.examples_per_device=32")),
        "1 x 4 dividing by means": Case(overrides=ONE, fault="mean of four means"),
        "1 x 4 again": Case(overrides=ONE),
        "1 x 4 of another seed": Case(overrides=(*ONE, "run.seed=18")),
        "zero2 on one rank": Case(overrides=(*zero(2), "layout.processes=1")),
        "frozen": Case(overrides=(*ONE, *FROZEN)),
        "lora": Case(overrides=(*ONE, *LORA)),
        "dora": Case(overrides=(*ONE, *DORA)),
        "lora and whole embeddings": Case(overrides=(*ONE, *WHOLE)),
        "padded to length": Case(overrides=(*ONE, *TO_LENGTH)),
        "padded to length, pads read": Case(overrides=(*ONE, *TO_LENGTH), fault="pads are read"),
        "packed": Case(overrides=(*ONE, *PACKED)),
        "packed, a row at a time": Case(overrides=(*ONE, *PACKED, "training.examples_per_device=1")),
        "packed, eager": Case(overrides=(*ONE, *PACKED, "model.attention=eager")),
        "packed, examples see across": Case(overrides=(*ONE, *PACKED), fault="rows see across"),
        "packed LoRA": Case(overrides=(*ONE, *LORA, *PACKED)),
        "a token budget": Case(overrides=(*ONE, *BY_TOKENS)),
        "packed to a token budget": Case(overrides=(*ONE, *BY_TOKENS, *PACKED)),
        "int8": Case(overrides=(*ONE, *LORA, "model.quantisation=int8")),
        "int8 with wrong scales": Case(overrides=(*ONE, *LORA, "model.quantisation=int8"), fault="wrong scale of int8"),
        "recomputed": Case(overrides=(*ONE, *RECOMPUTE)),
        "dropout": Case(overrides=(*ONE, *DROPOUT, *KEEP)),
        "dropout, recomputed": Case(overrides=(*ONE, *DROPOUT, *RECOMPUTE)),
        "dropout, recomputed with another mask": Case(
            overrides=(*ONE, *DROPOUT, *RECOMPUTE), fault="other dropout when recomputed"
        ),
        "dropout, measured": Case(overrides=(*ONE, *DROPOUT, *KEEP), evaluate=True),
        "dropout, measured with a trace": Case(
            overrides=(*ONE, *DROPOUT, *KEEP), evaluate=True, fault="measuring leaves a trace"
        ),
        "encoder": Case(overrides=(*ONE, *LABELS), config=encoder),
        "encoder padded to length": Case(overrides=(*ONE, *LABELS, *TO_LENGTH), config=encoder),
        "encoder padded to length, pads read": Case(
            overrides=(*ONE, *LABELS, *TO_LENGTH), config=encoder, fault="pads are read"
        ),
        "encoder recomputed": Case(overrides=(*ONE, *LABELS, *RECOMPUTE), config=encoder),
        "fp16": Case(overrides=ONE, bypass=FP16),
        "fp16 after overflows": Case(overrides=ONE, bypass=FP16, fault="enormous loss scale"),
    }


def cases_on_two_processes(encoder: Path) -> dict[str, Case]:
    """By name."""
    return {
        "2 x 2 ddp": Case(overrides=ddp()),
        "zero1": Case(overrides=zero(1)),
        "zero2": Case(overrides=zero(2)),
        "zero3": Case(overrides=zero(3)),
        "zero1 offload": Case(overrides=zero(1, offload="optimizer")),
        "zero2 offload": Case(overrides=zero(2, offload="optimizer")),
        "zero3 offload": Case(overrides=zero(3, offload="optimizer")),
        "zero3 offload parameters": Case(overrides=zero(3, offload="optimizer_and_parameters")),
        "ddp, own normaliser": Case(overrides=ddp(), fault="own normaliser"),
        "zero2, own normaliser": Case(overrides=zero(2), fault="own normaliser"),
        "zero2 again": Case(overrides=zero(2)),
        "frozen zero3": Case(overrides=zero(3, *FROZEN)),
        "frozen zero3, own normaliser": Case(overrides=zero(3, *FROZEN), fault="own normaliser"),
        "lora ddp": Case(overrides=ddp(*LORA)),
        "lora zero2": Case(overrides=zero(2, *LORA)),
        "lora zero3": Case(overrides=zero(3, *LORA)),
        "lora zero3, own normaliser": Case(overrides=zero(3, *LORA), fault="own normaliser"),
        "dora zero2": Case(overrides=zero(2, *DORA)),
        "whole embeddings ddp": Case(overrides=ddp(*WHOLE)),
        "whole embeddings zero3": Case(overrides=zero(3, *WHOLE)),
        "recomputed zero2": Case(overrides=zero(2, *RECOMPUTE)),
        "recomputed zero3": Case(overrides=zero(3, *RECOMPUTE)),
        "zero3, measured": Case(overrides=zero(3), evaluate=True),
        "packed ddp": Case(overrides=ddp(*PACKED)),
        "packed zero2": Case(overrides=zero(2, *PACKED)),
        "packed zero3": Case(overrides=zero(3, *PACKED)),
        "packed zero3, examples see across": Case(overrides=zero(3, *PACKED), fault="rows see across"),
        "a token budget, ddp": Case(overrides=ddp(*BY_TOKENS)),
        "a token budget, zero2": Case(overrides=zero(2, *BY_TOKENS)),
        "a token budget, zero3": Case(overrides=zero(3, *BY_TOKENS)),
        "a token budget, own normaliser": Case(overrides=ddp(*BY_TOKENS), fault="own normaliser"),
        "packed to a token budget, zero2": Case(overrides=zero(2, *BY_TOKENS, *PACKED)),
        "packed to a token budget, zero3": Case(overrides=zero(3, *BY_TOKENS, *PACKED)),
        "packed to a token budget, own normaliser": Case(overrides=ddp(*BY_TOKENS, *PACKED), fault="own normaliser"),
        "encoder ddp": Case(overrides=ddp(*LABELS), config=encoder),
        "encoder zero2": Case(overrides=zero(2, *LABELS), config=encoder),
        "encoder zero3": Case(overrides=zero(3, *LABELS), config=encoder),
        "encoder zero3, pads read": Case(overrides=zero(3, *LABELS), config=encoder, fault="pads are read"),
        "fp16 ddp": Case(overrides=ddp(), bypass=FP16),
        "fp16 zero2 after overflows": Case(overrides=zero(2), bypass=FP16, fault="enormous loss scale"),
        "fp16 zero3 after overflows": Case(overrides=zero(3), bypass=FP16, fault="enormous loss scale"),
    }


CLASSES = {
    "layouts, full": Class(
        reference="1 x 4",
        members=(
            *("1 x 1", "2 x 2 ddp", "zero1", "zero2", "zero3", "zero2 on one rank"),
            *("zero1 offload", "zero2 offload", "zero3 offload", "zero3 offload parameters"),
        ),
        negatives=("1 x 4 dividing by means", "ddp, own normaliser", "zero2, own normaliser"),
    ),
    "layouts, frozen parts": Class(
        reference="frozen", members=("frozen zero3",), negatives=("frozen zero3, own normaliser", "1 x 4")
    ),
    "layouts, LoRA": Class(
        reference="lora",
        members=("lora ddp", "lora zero2", "lora zero3"),
        negatives=("lora zero3, own normaliser",),
    ),
    "layouts, DoRA": Class(reference="dora", members=("dora zero2",), negatives=("lora",)),
    "layouts, LoRA and whole embeddings": Class(
        reference="lora and whole embeddings",
        members=("whole embeddings ddp", "whole embeddings zero3"),
        negatives=("lora",),
    ),
    "layouts, classifier": Class(
        reference="encoder",
        members=("encoder ddp", "encoder zero2", "encoder zero3"),
        negatives=("encoder zero3, pads read",),
    ),
    "padding to batch, to length": Class(
        reference="1 x 4", members=("padded to length",), negatives=("padded to length, pads read",)
    ),
    "padding of a classifier": Class(
        reference="encoder",
        members=("encoder padded to length",),
        negatives=("encoder padded to length, pads read",),
    ),
    "packed, not packed": Class(
        reference="1 x 4",
        members=(
            *("packed", "packed, a row at a time", "packed, eager"),
            *("packed ddp", "packed zero2", "packed zero3"),
        ),
        negatives=("packed, examples see across", "packed zero3, examples see across"),
    ),
    "packed, not packed, LoRA": Class(
        reference="lora", members=("packed LoRA",), negatives=("packed, examples see across",)
    ),
    "layouts, a token budget": Class(
        reference="a token budget",
        members=("a token budget, ddp", "a token budget, zero2", "a token budget, zero3"),
        negatives=("a token budget, own normaliser",),
    ),
    "layouts, packed to a token budget": Class(
        reference="packed to a token budget",
        members=("packed to a token budget, zero2", "packed to a token budget, zero3"),
        negatives=("packed to a token budget, own normaliser",),
    ),
    "8-bit and fp32, first loss": Class(
        reference="lora",
        members=("int8",),
        negatives=("int8 with wrong scales",),
        tolerance=INT8_TOLERANCE,
        first_loss_only=True,
    ),
    "activation checkpointing on, off": Class(
        reference="1 x 4",
        members=("recomputed", "recomputed zero2", "recomputed zero3"),
        negatives=("ddp, own normaliser",),
    ),
    "activation checkpointing with dropout": Class(
        reference="dropout",
        members=("dropout, recomputed",),
        negatives=("dropout, recomputed with another mask",),
    ),
    "activation checkpointing of a classifier": Class(
        reference="encoder", members=("encoder recomputed",), negatives=("encoder zero3, pads read",)
    ),
    "with, without evaluation": Class(
        reference="dropout",
        members=("dropout, measured",),
        negatives=("dropout, measured with a trace",),
        exact=True,
    ),
    "with, without evaluation under ZeRO-3": Class(
        reference="zero3", members=("zero3, measured",), negatives=("zero2, own normaliser",), exact=True
    ),
    "one seed twice, one process": Class(
        reference="1 x 4", members=("1 x 4 again",), negatives=("1 x 4 of another seed",), exact=True
    ),
    "one seed twice, ZeRO-2": Class(
        reference="zero2", members=("zero2 again",), negatives=("1 x 4 of another seed",), exact=True
    ),
}

FP16_CLASS = Class(
    reference="fp16",
    members=("fp16 after overflows", "fp16 ddp", "fp16 zero2 after overflows", "fp16 zero3 after overflows"),
    negatives=("1 x 4 dividing by means",),
    tolerance=FP16_TOLERANCE,
)
"""Where the processor computes in fp16."""

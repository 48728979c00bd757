"""What a user can ask of the measurements: what is measured, when, and how much time it may take."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections import PositiveInt, Section


class PulseSection(Section):
    """Small measurements while training: the tasks of tier `pulse`, on a part of their examples."""

    max_share_of_time: Annotated[float, Field(gt=0.0, le=1.0)] = 0.02
    """Of the wall time of the run: the next pulse waits until it fits, by what the last one took."""

    examples_per_task: Annotated[int, Field(ge=2)] = 64
    """Examples of each task: the first of those that are measured anyway, so always the same ones."""

    min_steps_between: PositiveInt = 1
    """Optimizer steps between two pulses, at least."""


class RecoverySection(Section):
    """After the run: how much of what was lost comes back in a few steps on a copy. Quick recovery means that the
    ability was out of reach, not gone (Zheng et al. 2025, arXiv 2501.13453)."""

    num_steps: PositiveInt = 20
    """Optimizer steps of a small adapter, which is thrown away."""

    num_examples: PositiveInt = 64
    """Examples of the lost ability to train it on, none of which is measured."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of AdamW."""


class EvaluationSection(Section):
    """What is measured before step 0, while training and after it."""

    suite: str | None = None
    """YAML file that lists base abilities (see configs/demo_suite.yaml). Without it, forgetting is not measured."""

    max_examples_per_task: PositiveInt = 300
    """Held-out examples scored for each task, chosen by hash of their id: always the same ones."""

    examples_per_batch: PositiveInt | Literal["auto"] = "auto"
    """Examples of one evaluation batch. auto: 32, or fewer where the logits of the longest would take over 2 GiB. It
    never depends on the number of ranks: the same batches give the same numbers."""

    when: Literal["in_run", "later"] = "in_run"
    """in_run: before step 0, in pulses, after each stage, and at the end. later: before step 0 only; the rest is for
    `retain evaluate RUN`, another job that needs no more than one device."""

    baseline: Literal["reuse", "measure"] = "reuse"
    """reuse: take the measurement before training from the cache, where the same model was measured by the same suite
    in the same way. measure: measure it again, and keep that."""

    reference_run: str | None = None
    """Folder of a finished run that trained on the tasks of all stages at once: its scores are what each stage's are
    held against, when just learnt (intransigence)."""

    pulse: PulseSection | None = PulseSection()
    """Measurements while training; null for none."""

    drift_tokens_per_task: Annotated[int, Field(ge=0)] = 16_384
    """Tokens of each text on which the base's distribution is kept, to compare the trained one with: KL divergence and
    agreement. 0: not measured."""

    null_flips: bool = True
    """Measure the base a second time in other batches before step 0: answers that flip by rounding alone are the
    floor under every count of flips."""

    recovery: RecoverySection | None = None
    """Ask of each REGRESSED ability whether a few steps bring it back (`retain recover RUN` asks afterwards)."""

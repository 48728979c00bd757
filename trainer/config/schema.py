"""RunConfig: everything a user can ask for, each field with its meaning and unit.

Frozen and strict: unknown keys and wrong types are refused. Rules that concern
one section stand in that section; rules across sections stand in RunConfig.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trainer.config.data_schema import DataSection
from trainer.config.evaluation_schema import EvaluationSection
from trainer.config.sections import PositiveInt, Section, Share


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


SMALLEST_8BIT_ELEMENTS = 4096
"""training.optimizer adamw_8bit: bitsandbytes keeps the moments of smaller tensors in fp32."""

Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3"]
Method = Literal["full", "lora"]
Precision = Literal["fp32", "bf16", "fp16"]
Objective = Literal["causal_lm", "classification"]
Quantisation = Literal["none", "int8", "int4"]
Offload = Literal["none", "optimizer", "optimizer_and_parameters"]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Pattern = Annotated[str, AfterValidator(_compiles)]


class RunSection(Section):
    """Where a run lives and what makes it repeatable."""

    folder: str
    """Run folder. It must not hold an earlier run; `retain train --resume RUN` continues one."""

    seed: int = 17
    """Seed of the data order, of new weights (LoRA) and of dropout."""

    record_order: bool = False
    """Write order.csv: step, task and id of every example that was trained on, in the order of the mixture."""


class ModelSection(Section):
    """The model to start from."""

    path: str
    """Folder with config.json and safetensors, or a hub name that is already in the local Hugging Face cache."""

    quantisation: Quantisation = "none"
    """Keep the frozen base in 8 or 4 bits (bitsandbytes: LLM.int8, NF4). With method: lora, on one process."""

    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention implementation that transformers uses. With data.packing on a GPU, flash_attention_2 (package
    flash-attn) and flex_attention do no work across the examples of a row; sdpa computes it and masks it out."""


class LoraSection(Section):
    """Low-rank adaptation (peft). Read only where `method: lora`."""

    rank: PositiveInt = 16
    """Rank of the update; adds rank * (in + out) weights for each adapted layer."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale numerator: the update is multiplied by alpha / rank."""

    dropout: Share = 0.0
    """Dropout on the input of the update."""

    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023, arXiv 2312.03732)."""

    dora: bool = False
    """Train magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353); slower, one vector a layer more."""

    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "all-linear"
    """Module names to adapt, for example [q_proj, v_proj], or all linear layers but the output head."""

    train_in_full: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names of modules whose every weight is trained beside the updates, for example [embed_tokens, lm_head]."""


class FreezeSection(Section):
    """Weights that full fine-tuning leaves as they were."""

    embeddings: bool = False
    """Token and position embeddings, and with them an output head that shares their weights."""

    first_layers: Annotated[int, Field(ge=0)] = 0
    """So many transformer layers, counted from the input."""

    patterns: Annotated[tuple[Pattern, ...], Field(strict=False)] = ()
    """Regular expressions searched in parameter names."""


class ClassificationSection(Section):
    """Sequence classification with a fresh head. Read only where `objective: classification`."""

    labels: Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
    """The classes, in the order of the head's outputs; each example's response is one of them."""

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) < len(self.labels) or any(not label.strip() for label in self.labels):
            raise ValueError(f"labels {list(self.labels)} must be different and not empty")
        return self


class TrainingSection(Section):
    """The optimizer's steps. `step` is always one update of the weights."""

    num_steps: PositiveInt
    """Optimizer steps of the whole run."""

    examples_per_step: PositiveInt | None = None
    """Global batch: examples of one optimizer step over all ranks and micro-batches. Or give `tokens_per_step`."""

    tokens_per_step: PositiveInt | None = None
    """Global batch in tokens, prompts included: a step takes the next examples of the order as long as they fit. With
    data.packing they fit where that many tokens of rows hold them: every step then has as many rows."""

    examples_per_device: PositiveInt | Literal["auto"] = "auto"
    """Examples, or packed rows, of one micro-batch on one device. auto: the largest divisor of a rank's share that is
    at most 16 and fits."""

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw, or bitsandbytes' AdamW with moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861)."""

    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate of AdamW, reached after the warm-up."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise to the peak."""

    final_learning_rate_share: Share = 0.1
    """Learning rate at the last step as a share of the peak (cosine)."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW; not applied to biases and norm weights."""

    adam_beta1: Decay = 0.9
    """Decay of the first moment."""

    adam_beta2: Decay = 0.999
    """Decay of the second moment."""

    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""

    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Global L2 norm to which gradients are clipped."""

    precision: Precision = "fp32"
    """fp32, or computation in bf16 or fp16 over fp32 master weights. Under fp16 the loss is scaled dynamically: a
    step whose gradients overflow is taken again with a smaller scale."""

    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, about a third more time. auto: where the base is
    quantised, or where a step would not fit without it."""

    log_every_steps: PositiveInt = 10
    """Steps between two lines of metrics (metrics.jsonl, TensorBoard, screen)."""

    @model_validator(mode="after")
    def _one_batch_size(self) -> Self:
        if (self.examples_per_step is None) == (self.tokens_per_step is None):
            found = "neither is" if self.examples_per_step is None else "both are"
            raise ValueError(f"wanted one of `examples_per_step` and `tokens_per_step`, and {found} given")
        return self


class LayoutSection(Section):
    """How the run is spread over devices."""

    strategy: Strategy | Literal["auto"] = "auto"
    """single, ddp, or ZeRO stage 1, 2, 3 (DeepSpeed). auto: the simplest one whose model states fit."""

    offload: Offload = "none"
    """What ZeRO keeps in main memory instead of on the device. Parameters can be offloaded under zero3 only."""

    processes: PositiveInt | Literal["auto"] = "auto"
    """Ranks, one for each device. auto: every GPU, or one process on a machine without."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is a GPU."""

    threads_per_process: PositiveInt | Literal["auto"] = "auto"
    """Processor threads of each rank. auto: the cores divided among the ranks. On a CPU another number may change the
    last digit of a number: torch rounds differently where the work of a thread ends."""

    memory_per_device_gib: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Memory that one rank may take. auto: that of its GPU, or an equal part of main memory on a CPU."""

    on_oversize: Literal["fallback", "refuse"] = "fallback"
    """What to do where the asked method does not fit the one device at hand: train LoRA over an 8-bit base instead
    (a recorded decision), or refuse."""

    collective_timeout_seconds: PositiveInt = 600
    """A collective that waits longer than this is an error on every rank."""


class CheckpointSection(Section):
    """When the state of a run is written."""

    every_steps: PositiveInt | None = None
    """Steps between checkpoints. One is always written at the end and when a run is stopped."""

    keep_last: PositiveInt = 2
    """Complete checkpoints to keep; older ones are removed after a newer one is complete."""


class RunConfig(Section):
    """A whole run, as the user asks for it."""

    run: RunSection
    model: ModelSection
    objective: Objective = "causal_lm"
    """causal_lm: predict the response. classification: predict its label with a fresh head."""

    classification: ClassificationSection | None = None
    """Labels of the head (objective: classification)."""

    method: Method = "full"
    """full: every weight is trained. lora: low-rank updates beside frozen weights."""

    lora: LoraSection | None = None
    """Settings of the low-rank updates (method: lora)."""

    freeze: FreezeSection | None = None
    """Weights that stay as they were (method: full; LoRA freezes the whole base by itself)."""

    data: DataSection
    training: TrainingSection
    layout: LayoutSection = LayoutSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        if self.lora is not None and self.method != "lora":
            raise ValueError(f"a `lora` section is given but method is {self.method!r}: set method: lora or remove it")
        if self.model.quantisation != "none" and self.method != "lora":
            raise ValueError(
                f"model.quantisation is {self.model.quantisation} but method is {self.method!r}: "
                "weights in so few bits cannot be trained themselves. Set method: lora"
            )
        if self.freeze is not None and self.method != "full":
            raise ValueError(f"a `freeze` section is given but method is {self.method!r}, which freezes the whole base")
        self._objective_fits()
        self._packing_fits()
        self._streams_fit()
        if self.training.warmup_steps > self.training.num_steps:
            raise ValueError(
                f"training.warmup_steps is {self.training.warmup_steps}, more than "
                f"training.num_steps {self.training.num_steps}: the peak would never be reached"
            )
        return self

    def _objective_fits(self) -> None:
        if (self.objective == "classification") != (self.classification is not None):
            raise ValueError(
                f"objective is {self.objective!r} and the `classification` section is "
                f"{'given' if self.classification else 'missing'}: objective: classification needs its labels there"
            )
        scored = [name for name, task in self.data.tasks.items() if task.score is not None]
        if self.objective == "classification" and (scored or self.data.chat_template):
            found = f"data.tasks.{scored[0]}.score" if scored else "data.chat_template"
            raise ValueError(
                f"{found} is given, but objective is 'classification': accuracy and macro-F1 are always "
                "measured, and a prompt is given as it is. Remove it"
            )

    def _packing_fits(self) -> None:
        if not self.data.packing:
            return
        if self.objective == "classification":
            raise ValueError(
                "data.packing is true, but objective is 'classification': the head reads one place of each row, so a "
                "row holds one example. Set data.packing=false"
            )
        length, budget = self.data.sequence_length_tokens, self.training.tokens_per_step
        if budget is not None and budget % length:
            raise ValueError(
                f"training.tokens_per_step: found {budget}, which is no whole number of packed rows of "
                f"{length} tokens (data.sequence_length_tokens). Set it to {max(1, budget // length) * length}"
            )

    def _streams_fit(self) -> None:
        streamed = [name for name, task in self.data.tasks.items() if task.streaming]
        if streamed and self.training.examples_per_step is None:
            raise ValueError(
                f"training.tokens_per_step needs the lengths of all examples, and data.tasks.{streamed[0]} is "
                "streamed. Set training.examples_per_step instead, or streaming: false"
            )
        if streamed and self.data.stream_window_examples < (self.training.examples_per_step or 0):
            raise ValueError(
                f"data.stream_window_examples is {self.data.stream_window_examples}, less than the "
                f"{self.training.examples_per_step} examples of a step. Raise it"
            )

    @property
    def rows_per_step(self) -> int | None:
        """Rows of one optimizer step where every step has as many; None where that follows from the examples."""
        if not self.data.packing:
            return self.training.examples_per_step
        budget = self.training.tokens_per_step
        return None if budget is None else budget // self.data.sequence_length_tokens

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of a classifier; none for a language model."""
        return self.classification.labels if self.classification else ()

    @property
    def lora_or_default(self) -> LoraSection:
        """The LoRA settings in force where `method: lora`."""
        return self.lora or LoraSection()

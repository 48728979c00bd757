"""Plan: exactly what will be executed, as one frozen value that `retain plan` prints and every rank reads.

Made by launch.plan from a RunConfig and the machine; written to plan.json in
the run folder, from which any later stage can be repeated.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from trainer.config.errors import ConfigError
from trainer.config.schema import RunConfig, Strategy
from trainer.config.sections import Section

Device = Literal["cpu", "cuda"]


class Decision(Section):
    """A choice that Retain made, or a departure from what was asked: printed and recorded."""

    field: str
    """Dotted key of the configuration."""

    asked: str
    """What the configuration says."""

    used: str
    """What will be used."""

    reason: str
    """Why, with the numbers behind it."""


class MemoryEstimate(Section):
    """Bytes on one device at the peak of a step, estimated for the longest sequences."""

    model_type: str = ""
    """As config.json says; empty where it does not."""

    num_parameters: int
    """Parameters of the model, adapters included; tied weights count once."""

    num_trainable_parameters: int
    """Parameters that receive gradients."""

    weight_bytes: int
    """Weights as the engine keeps them, frozen ones included."""

    gradient_bytes: int
    """Gradients of the trainable weights."""

    optimizer_bytes: int
    """AdamW moments and, under ZeRO, the fp32 master weights."""

    offloaded_bytes: int = 0
    """What ZeRO-Offload keeps in main memory instead, for each rank."""

    activation_bytes: int | None = None
    """What a micro-batch keeps from forward to backward; None where the geometry of the model is not known."""

    logit_bytes: int | None = None
    """Logits, the loss and their gradients, at their peak; None as above."""

    evaluation_bytes: int | None = None
    """Logits of an evaluation batch, which come where a step has activations and logits; None as above."""

    communication_bytes: int = 0
    """Buffers of collectives."""

    @property
    def model_state_bytes(self) -> int:
        """Weights, gradients and optimizer states together: what ZeRO shards."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """All of it on the device; what is not known counts nothing."""
        passing = max((self.activation_bytes or 0) + (self.logit_bytes or 0), self.evaluation_bytes or 0)
        return self.model_state_bytes + passing + self.communication_bytes


class Plan(Section):
    """One run, decided."""

    schema_version: Literal[1] = 1
    """Goes up when an older run folder could not be read any more."""

    config: RunConfig
    """The configuration in force: files, `extends` and overrides merged, and a fallback where one was taken."""

    decisions: Annotated[tuple[Decision, ...], Field(strict=False)]
    """Every choice that the configuration left to Retain, with its reason."""

    strategy: Strategy
    """How the model is spread over the ranks."""

    device: Device
    """What each rank computes on."""

    world_size: int
    """Number of ranks."""

    examples_per_microbatch: int
    """Examples, or packed rows, of one forward and backward pass on one rank."""

    microbatches_per_step: int | None
    """Forward and backward passes of one rank before the optimizer steps (accumulation). None where it follows from
    the examples of each step: of a token budget, or packed."""

    activation_checkpointing: bool
    """Recompute activations in the backward pass."""

    evaluation_examples_per_batch: int
    """Examples of one evaluation batch."""

    run_folder: str
    """Absolute path of the run folder."""

    model_folder: str
    """Absolute path of the folder that config.json and the weights are read from."""

    cache_folder: str
    """Absolute path of RETAIN_CACHE: compiled operators and demo assets."""

    argv: Annotated[tuple[str, ...], Field(strict=False)]
    """The command that starts all ranks of this node."""

    environment: dict[str, str]
    """Variables that the command needs beside the user's own environment."""

    memory: MemoryEstimate
    """Model states on one device."""

    config_sha256: str
    """Hash of the resolved configuration."""

    code_version: str
    """Version of Retain, with the git commit where the code is a checkout."""

    @property
    def zero_stage(self) -> int:
        """ZeRO stage; 0 for single and ddp."""
        return int(self.strategy.removeprefix("zero")) if self.strategy.startswith("zero") else 0

    def to_json(self) -> str:
        """Readable JSON that `read_plan` reads back to an equal value."""
        return self.model_dump_json(indent=2) + "\n"


def read_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:
        ConfigError: the file is missing, damaged, or of another version of Retain.
    """
    try:
        return Plan.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Is this a run folder?") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: damaged: not UTF-8 text. Start the run anew.") from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: not a plan of this version of Retain ({key}: {first['msg']}). Start the run anew."
        ) from None

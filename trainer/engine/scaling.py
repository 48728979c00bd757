"""The dynamic loss scale of fp16, the same under both engines.

Gradients below 6e-8 are zero in fp16, so the loss is multiplied by a large number first (Micikevicius et al. 2018,
arXiv 1710.03740, section 3.2). DeepSpeed's own scaler divides by the new scale in the step that makes it grow; this
one changes between steps only.
"""

from trainer.config.errors import NonFiniteError
from trainer.config.schema import Precision

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 1000
"""Steps without an overflow after which the scale doubles."""


class LossScale:
    """1 unless gradients are fp16."""

    def __init__(self, precision: Precision) -> None:
        self.is_dynamic = precision == "fp16"
        self.value = FIRST_SCALE if self.is_dynamic else 1.0
        self._clean_steps = 0

    def overflowed(self) -> None:
        """Halve after gradients that are not finite.

        Raises:
            NonFiniteError: the scale is 1 already: it is not the scale that makes them overflow.
        """
        if self.value <= 1.0:
            raise NonFiniteError("gradients are not finite even at loss scale 1")
        self.value, self._clean_steps = self.value / 2, 0

    def stepped(self) -> None:
        """Count a step without overflow."""
        self._clean_steps += 1
        if self.is_dynamic and self._clean_steps >= GROWTH_STEPS:
            self.value, self._clean_steps = self.value * 2, 0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"value": self.value, "clean_steps": float(self._clean_steps)}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        self.value, self._clean_steps = float(state["value"]), int(state["clean_steps"])

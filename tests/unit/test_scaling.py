"""The loss scale of fp16: halved by an overflow, doubled after a thousand clean steps, kept by a checkpoint."""

import pytest

from trainer.config.errors import NonFiniteError
from trainer.engine.scaling import FIRST_SCALE, GROWTH_STEPS, LossScale


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_fp16_is_scaled(precision: str) -> None:
    scale = LossScale(precision)  # type: ignore[arg-type]  # a word of the schema
    for _ in range(GROWTH_STEPS + 1):
        scale.stepped()
    assert (scale.is_dynamic, scale.value) == (False, 1.0)


def test_an_overflow_halves_the_scale_down_to_one_and_then_is_an_error() -> None:
    scale = LossScale("fp16")
    for exponent in range(15, -1, -1):  # 2^16 to 2^0
        scale.overflowed()
        assert scale.value == 2.0**exponent
    with pytest.raises(NonFiniteError, match="even at loss scale 1"):
        scale.overflowed()


def test_the_scale_doubles_after_enough_clean_steps_in_a_row() -> None:
    scale = LossScale("fp16")
    for _ in range(GROWTH_STEPS - 1):
        scale.stepped()
    scale.overflowed()  # the count begins anew
    for _ in range(GROWTH_STEPS - 1):
        scale.stepped()
    assert scale.value == FIRST_SCALE / 2
    scale.stepped()
    assert scale.value == FIRST_SCALE


def test_a_checkpoint_brings_scale_and_count_back() -> None:
    scale, resumed = LossScale("fp16"), LossScale("fp16")
    scale.overflowed()
    for _ in range(GROWTH_STEPS - 1):
        scale.stepped()
    resumed.restore(scale.state())
    resumed.stepped()
    assert resumed.value == FIRST_SCALE

"""How a step's batch divides among ranks and micro-batches."""

from trainer.config.errors import ConfigError
from trainer.config.schema import RunConfig


def rows_per_rank(config: RunConfig, world_size: int) -> int | None:
    """Examples, or packed rows, of a step on one rank; None where steps differ."""
    return None if config.rows_per_step is None else config.rows_per_step // world_size


def check_batch(config: RunConfig, world_size: int) -> None:
    """Refuse a batch that does not divide: a rank or a micro-batch would get fewer examples than the others.

    Raises:
        ConfigError: with the numbers that would.
    """
    total, asked = config.rows_per_step, config.training.examples_per_device
    if total is None:
        return  # steps of several sizes: ranks are kept in step by micro-batches that only fill up
    length = config.data.sequence_length_tokens if config.training.tokens_per_step else 1
    key = "tokens_per_step" if config.training.tokens_per_step else "examples_per_step"
    if total % world_size:
        lower, upper = total - total % world_size, total + world_size - total % world_size
        choices = " or ".join(str(number * length) for number in (lower, upper) if number)
        rows = f" ({total} packed rows)" if length > 1 else ""
        raise ConfigError(
            f"training.{key}: found {total * length}{rows}, which does not divide by {world_size} ranks. "
            f"Set it to {choices}, or change layout.processes."
        )
    per_rank, what = total // world_size, "packed rows" if length > 1 else "examples"
    if asked != "auto" and per_rank % asked:
        divisors = ", ".join(str(n) for n in range(1, per_rank + 1) if per_rank % n == 0)
        raise ConfigError(
            f"training.examples_per_device: found {asked}, but each rank's {per_rank} {what} a step "
            f"({total} / {world_size} ranks) do not divide by it. Set it to one of {divisors}."
        )

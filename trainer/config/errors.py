"""Errors that a person must act on, and the exit codes of the command.

Every message says where, what was found, what was wanted and what to do.
"""

EXIT_DONE = 0
EXIT_CRASH = 1
EXIT_INPUT = 2
EXIT_REGRESSED = 3
"""A base ability is shown to have regressed beyond its margin."""

EXIT_INCONCLUSIVE = 4
"""Nothing regressed for certain, but at least one base ability is not shown to be kept."""

EXIT_STOPPED = 75
"""Stopped early with a complete checkpoint: run again to go on (EX_TEMPFAIL of sysexits.h)."""

EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C before there was a checkpoint (128 + SIGINT)."""

OWN_LINE = "retain: "
"""What a line on stderr begins with that is meant for a person, not library noise."""


class InputError(ValueError):
    """The user's input is wrong: one clear line, exit code 2, no traceback."""


class ConfigError(InputError):
    """The configuration or an override is wrong."""


class DataError(InputError):
    """A data file is missing, malformed, or does not fit its template."""


class NonFiniteError(ArithmeticError):
    """A loss or a gradient norm is not finite; raised before the optimizer touched a weight."""

"""Errors that a user can fix: each names the thing that is wrong and what to do about it.

The command line prints these without a traceback; any other exception is a defect of ours.
"""

from __future__ import annotations

import signal


class InterstackError(ValueError):
    """Base of all errors whose cause is the user's input or environment."""


class ConfigurationError(InterstackError):
    """A setting contradicts another one, or what a model can serve."""


class DataError(InterstackError):
    """Audio, a split or a shard is missing, empty, corrupt or of the wrong kind."""


class TeacherError(InterstackError):
    """A teacher can't be found, loaded or used as asked."""


class PrecisionError(InterstackError):
    """A number format computes something else than float32 on this machine."""


class CheckpointError(InterstackError):
    """A checkpoint is missing, damaged, or of another run than the one that wants it."""


class CheckpointReadError(CheckpointError):
    """The disk or file server fails where a checkpoint is; the checkpoint itself may be sound."""


class RunInterrupted(InterstackError):  # noqa: N818, what it tells of is no error
    """A signal ended a run, and its checkpoint is written.

    Args:
        message: What happened, and how to go on.
        signum: The signal.

    Attributes:
        exit_status: 130 after Ctrl-C, as shells have it; otherwise 75, "try again later".
    """

    def __init__(self, message: str, signum: signal.Signals) -> None:
        super().__init__(message)
        self.exit_status = 130 if signum == signal.SIGINT else 75


def first_line(error: Exception) -> str:
    """Return what a foreign error says, as words within a line of ours; its kind if nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

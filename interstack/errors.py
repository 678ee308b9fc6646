"""Errors that a user can mend: each names the thing that is wrong and what to do about it.

The command line prints these without a traceback; any other exception is a defect of ours.
"""

from __future__ import annotations


class InterstackError(ValueError):
    """Base of all errors whose cause is the user's input or surroundings."""


class ConfigurationError(InterstackError):
    """A setting contradicts another one, or what a model can serve."""


class DataError(InterstackError):
    """Audio, a split or a shard is missing, empty, corrupt or of the wrong kind."""


class TeacherError(InterstackError):
    """A teacher can't be found, loaded or used as asked."""

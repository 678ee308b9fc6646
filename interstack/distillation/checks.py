"""What model and data have to agree on, checked before anything is trained."""

from __future__ import annotations

from typing import Protocol

from interstack.constants import SAMPLE_RATE
from interstack.errors import ConfigurationError
from interstack.models.front_end import receptive_field
from interstack.models.student import Student


class SpeechLengths(Protocol):
    """What a data module says of the lengths of its utterances."""

    min_seconds: float
    max_seconds: float | None


class HearingLimit(Protocol):
    """What a teacher, or the cache of its targets, says of the lengths that it takes."""

    source: str
    max_samples: int | None


def check_lengths(data: SpeechLengths, student: Student, teacher: HearingLimit | None) -> None:
    """Refuse data whose shortest or longest utterances a model can't take.

    Args:
        data: The data module.
        student: The student, whose receptive field the shortest utterance has to fill.
        teacher: The teacher, whose positions the longest one must not exceed; None if it is not
            needed.

    Raises:
        ConfigurationError: With the setting to change.
    """
    needed = receptive_field(student.config)
    if data.min_seconds * SAMPLE_RATE < needed:
        raise ConfigurationError(
            f"data.min_seconds {data.min_seconds} lets audio through that is shorter than the "
            f"front end's receptive field: give {needed / SAMPLE_RATE} or more"
        )
    if teacher is None or teacher.max_samples is None:
        return
    limit = teacher.max_samples / SAMPLE_RATE
    if data.max_seconds is None or data.max_seconds > limit:
        raise ConfigurationError(
            f"the teacher {teacher.source} has positions for {limit:g} s, but data.max_seconds is "
            f"{data.max_seconds}: set it to {limit:g} or less"
        )

"""What the student learns from: the teacher, or a cache of its targets; and what fits to what."""

from __future__ import annotations

from typing import Protocol

from interstack.constants import SAMPLE_RATE
from interstack.errors import ConfigurationError
from interstack.models.config import StudentConfig, TeacherConfig
from interstack.models.factory import load_front_end, load_teacher, taps_of
from interstack.models.front_end import receptive_field
from interstack.models.pretrained_front_end import FrontEndFacts
from interstack.models.student import Student
from interstack.models.teacher import Teacher
from interstack.target_cache.reader import CachedFrontEnd, CachedTeacher, TargetCache


def open_teacher(
    teacher: TeacherConfig, student: StudentConfig, initial_depth: int, targets: TargetCache | None
) -> Teacher | CachedTeacher:
    """Load the teacher, or return the cache that stands in for it.

    Args:
        teacher: Its settings.
        student: The student's settings: a shared front end is cached, too.
        initial_depth: Encoder layers of the first stage.
        targets: The cache, if there is one.

    Raises:
        ConfigurationError: If the cache was made by other settings.
        TeacherError: If the teacher can't be loaded.
    """
    if targets is None:
        return load_teacher(teacher, initial_depth)
    taps = taps_of(teacher, targets.record.num_layers, initial_depth)
    targets.record.check_teacher(teacher, taps)
    if student.front_end == "shared":
        targets.record.check_front_end(student, teacher)
    return CachedTeacher(targets)


def open_front_end(
    teacher: TeacherConfig, student: StudentConfig, targets: TargetCache | None
) -> FrontEndFacts | None:
    """Return the front end that a fresh student gets in place of the teacher's, if any.

    Args:
        teacher: The teacher's settings.
        student: The student's settings.
        targets: A cache of targets, which may hold the front end's output.

    Raises:
        TeacherError: If the front end can't be loaded.
    """
    name, only_local = student.front_end_source, teacher.local_files_only
    if name is None:
        return None
    if targets is not None and targets.record.has_front_end_of(name, only_local):
        return CachedFrontEnd(targets)
    return load_front_end(name, local_files_only=only_local)


class SpeechLengths(Protocol):
    """The lengths of a data module's utterances."""

    min_seconds: float
    max_seconds: float | None


class LengthLimit(Protocol):
    """The longest utterance that a teacher, or the cache of its targets, takes."""

    source: str
    max_samples: int | None


def check_lengths(data: SpeechLengths, student: Student, teacher: LengthLimit | None) -> None:
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

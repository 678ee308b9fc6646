"""From settings to a loaded teacher and a fresh student that fits it."""

from __future__ import annotations

from typing import Protocol

import torch

from interstack.growth.plan import even_ends
from interstack.models.config import StudentConfig, TeacherConfig, student_hubert_config
from interstack.models.family import load_encoder
from interstack.models.pretrained import Source
from interstack.models.pretrained_front_end import FrontEndFacts, PretrainedFrontEnd
from interstack.models.student import Student
from interstack.models.teacher import Teacher


class TeacherFacts(FrontEndFacts, Protocol):
    """What a student is built from; see `Teacher` for each."""

    @property
    def taps(self) -> tuple[int, ...]:
        """Which of its hidden states are targets."""

    @property
    def width(self) -> int:
        """Channels of a hidden state."""


def taps_of(config: TeacherConfig, num_layers: int, initial_depth: int) -> tuple[int, ...]:
    """Return the taps: those of the settings, or the default.

    Args:
        config: The settings. Without taps there is one for each layer of the first stage, or as
            many as the teacher has layers, spread evenly.
        num_layers: The teacher's.
        initial_depth: Encoder layers of the student's first stage.
    """
    if config.taps is not None:
        return config.taps
    return tuple(end + 1 for end in even_ends(num_layers, min(initial_depth, num_layers)))


def load_teacher(config: TeacherConfig, initial_depth: int) -> Teacher:
    """Load the teacher that the settings name, cut off above its deepest tap.

    Args:
        config: The settings; for the taps see `taps_of`.
        initial_depth: Encoder layers of the student's first stage.

    Raises:
        TeacherError: If it can't be found or loaded, or has no such taps.
    """
    taps = config.taps
    if taps is None and config.family is not None:
        layers = load_encoder(config.family, config.source).num_layers
        taps = taps_of(config, layers, initial_depth)
    elif taps is None:
        source = Source(config.source, config.revision, None, config.local_files_only)
        taps = taps_of(config, source.read_config().num_hidden_layers, initial_depth)
    # transformers draws numbers for weights that it then reads; a student starts with the same ones
    # whether its teacher is loaded or cached
    with torch.random.fork_rng(devices=[]):
        return Teacher(
            config.source,
            taps,
            revision=config.revision,
            dtype=config.dtype,
            local_files_only=config.local_files_only,
            pad_to_30s=config.pad_to_30s,
            family=config.family,
        )


def load_front_end(name: str, *, local_files_only: bool = False) -> PretrainedFrontEnd:
    """Load the front end that is copied or shared in place of the teacher's.

    Args:
        name: ``model.student.front_end_source``.
        local_files_only: Never contact the hub.

    Raises:
        ConfigurationError: If it can't be found or loaded, or there is none in that model.
    """
    with torch.random.fork_rng(devices=[]):  # as for a teacher
        return PretrainedFrontEnd(name, local_files_only=local_files_only)


def build_student(
    config: StudentConfig,
    depth: int,
    teacher: TeacherFacts,
    front_end: FrontEndFacts | None = None,
) -> Student:
    """Return a new student for a teacher, with the front end of the settings.

    Args:
        config: The student's settings.
        depth: Encoder layers of the first stage.
        teacher: The teacher it will learn from, or the cache of its targets.
        front_end: What is copied or shared in place of the teacher's front end; None: the
            teacher's.

    Raises:
        ConfigurationError: If settings, depth and teacher don't fit each other.
        TeacherError: If the teacher has no front end to copy or share.
    """
    own = config.front_end == "own"
    pretrained = teacher if front_end is None else front_end
    student = Student(
        student_hubert_config(config, depth, None if own else pretrained.config),
        teacher.taps,
        teacher.width,
        tap_placement=config.tap_placement,
        normalises_waveform=(
            config.feat_extract_norm == "layer" if own else pretrained.normalises_waveform
        ),
        freeze_front_end=config.front_end == "shared",
    )
    if not own:
        extractor = student.model.feature_extractor
        extractor.load_state_dict(pretrained.front_end_state())
    return student

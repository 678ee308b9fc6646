"""What stands in for a teacher, and for a front end's source, where a cache is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import HubertConfig

from interstack.checkpointing.atomic import write_whole
from interstack.checkpointing.disk import disk_fault, unread
from interstack.errors import TeacherError, first_line
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.models.teacher import Teacher, TeacherOutput
from interstack.target_cache.cache import TargetCache
from interstack.target_cache.values import StoredTargets, restore

FRONT_END_FILE: Final = "front_end.safetensors"
SOURCE_FILE: Final = "front_end_source.safetensors"
"""The weights of the front end of ``model.student.front_end_source``."""


def write_front_end(
    teacher: Teacher, directory: Path, front_end: PretrainedFrontEnd | None = None
) -> None:
    """Keep the front end's weights, from which a student's are copied or shared.

    A teacher that takes log-mel has none.

    Args:
        teacher: The teacher.
        directory: The cache's.
        front_end: That of ``model.student.front_end_source``, kept beside the teacher's.

    Raises:
        OSError: If they can't be written.
    """
    sources: dict[str, Teacher | PretrainedFrontEnd] = {}
    if teacher.takes_waveform:
        sources[FRONT_END_FILE] = teacher
    if front_end is not None:
        sources[SOURCE_FILE] = front_end
    for file, source in sources.items():
        state = {name: tensor.contiguous() for name, tensor in source.front_end_state().items()}
        write_whole(directory / file, save(state))


class CachedTeacher:
    """Gives what a teacher said when the cache was made; the model itself is never loaded.

    Its attributes are those of `Teacher`.

    Args:
        cache: A cache of its targets.
    """

    def __init__(self, cache: TargetCache) -> None:
        record = cache.record
        self.cache = cache
        self.config: Any = record.teacher_config
        self.source = record.source
        self.taps = record.taps
        self.width = record.width
        self.num_layers = record.num_layers
        self.normalises_waveform = record.normalises_waveform
        self.takes_waveform = record.takes_waveform
        self.max_samples = record.max_samples
        self.pad_to_30s = record.pad_to_30s
        self.first_frame_centre = record.first_frame_centre
        self.frame_hop = record.frame_hop
        self.has_final_norm = record.has_final_norm

    def to(self, device: torch.device) -> Self:
        """Stay where it is: what it gives lies where the batch does."""
        del device
        return self

    def front_end_state(self) -> dict[str, Tensor]:
        """Return the convolutional front end's weights.

        Raises:
            TeacherError: If the teacher takes log-mel, or the cache's file is missing.
        """
        return _read_front_end(self.cache.directory / FRONT_END_FILE, self.source)

    @property
    def gives_features(self) -> bool:
        """Whether batches carry the features of a frozen front end."""
        return self.cache.with_features and self.cache.record.num_features > 0

    def recall(self, stored: StoredTargets) -> TeacherOutput:
        """Unpack a batch's targets, on the device where they lie.

        Args:
            stored: From the cache, with features if the cache says so.

        Returns:
            What the teacher itself would give, up to the rounding of the cache's number format;
            features only where the cache serves them.
        """
        values = restore(stored)
        features = None
        if values.shape[-1] > len(self.taps) * self.width:
            features = values[..., : -len(self.taps) * self.width].transpose(1, 2)
            values = values[..., -len(self.taps) * self.width :]
        return TeacherOutput(features, torch.split(values, self.width, dim=-1), stored.num_frames)


class CachedFrontEnd:
    """The front end of ``model.student.front_end_source``, as a cache has kept it.

    Its attributes are those of `PretrainedFrontEnd`.

    Args:
        cache: A cache that was made with such a front end.
    """

    def __init__(self, cache: TargetCache) -> None:
        record = cache.record
        assert record.front_end_config is not None
        self.cache = cache
        self.config: Any = HubertConfig(**record.front_end_config)
        self.normalises_waveform = record.front_end_normalises_waveform

    def front_end_state(self) -> dict[str, Tensor]:
        """Return the convolutional front end's weights.

        Raises:
            TeacherError: If the cache's file is missing or damaged.
        """
        source = str(self.cache.record.front_end_source)
        return _read_front_end(self.cache.directory / SOURCE_FILE, source)


def _read_front_end(path: Path, source: str) -> dict[str, Tensor]:
    """Read the weights of a front end.

    Args:
        path: The cache's file.
        source: The front end's model, for messages.

    Raises:
        TeacherError: If the file is missing or damaged.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        fault = disk_fault(path)
        if fault is None:
            raise TeacherError(
                f"{path} can't be read ({first_line(error)}): make the cache anew in another "
                "directory"
            ) from error
        if not isinstance(fault, FileNotFoundError):
            raise TeacherError(unread(path, fault)) from error
        raise TeacherError(
            f"the cache in {path.parent} holds no front end of {source} to share or copy: give "
            "model.student.front_end own, or model.student.front_end_source a model that has one"
        ) from error
    return weights

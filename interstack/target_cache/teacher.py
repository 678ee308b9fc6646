"""A teacher that only remembers: what a cache stands in for, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from interstack.checkpointing.atomic import write_whole
from interstack.checkpointing.disk import disk_fault, unread
from interstack.errors import TeacherError, first_line
from interstack.models.teacher import Teacher, TeacherOutput
from interstack.target_cache.cache import TargetCache
from interstack.target_cache.values import StoredTargets, restore

FRONT_END_FILE: Final = "front_end.safetensors"


def write_front_end(teacher: Teacher, directory: Path) -> None:
    """Keep the front end's weights, from which a student's are copied or shared.

    A teacher that takes log-mel has none.

    Raises:
        OSError: If they can't be written.
    """
    if teacher.takes_waveform:
        state = {name: tensor.contiguous() for name, tensor in teacher.front_end_state().items()}
        write_whole(directory / FRONT_END_FILE, save(state))


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
        path = self.cache.directory / FRONT_END_FILE
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
                f"the cache in {self.cache.directory} holds no front end of {self.source} to share "
                "or copy: give model.student.front_end own"
            ) from error
        return weights

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

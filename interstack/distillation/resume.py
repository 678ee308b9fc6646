"""What a resumed run must have in common with the run that it continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from interstack.distillation.averaging import own_weights
from interstack.errors import ConfigurationError
from interstack.models.student import Student
from interstack.models.teacher import Teacher
from interstack.target_cache.reader import CachedTeacher

FINAL_NORM_KEY: Final = "interstack_final_norm"
"""Of a checkpoint: a pre-LN teacher's top target was taken after its final norm; earlier versions,
which took it before, lack the key."""


def check_top_target(checkpoint: Mapping[str, Any], teacher: Teacher | CachedTeacher) -> None:
    """Refuse a run whose top target lacked a pre-LN teacher's final norm.

    Raises:
        ConfigurationError: If an earlier version trained it so.
    """
    if FINAL_NORM_KEY not in checkpoint and teacher.has_final_norm:
        raise ConfigurationError(
            "the checkpoint was written by an earlier version of interstack, whose top target of a "
            "pre-LN teacher lacked its final layer norm: start a new run in another directory, or "
            "resume with the version that the run was started with"
        )


def check_front_end(checkpoint: Mapping[str, Any], student: Student, source: str) -> None:
    """Refuse a frozen front end of another model than the run was started with.

    Features in a cache are those of the model that the settings name.

    Args:
        checkpoint: The run's.
        student: A student with the front end that the settings name.
        source: ``model.student.front_end_source``.

    Raises:
        ConfigurationError: If the checkpoint's weights are others.
    """
    if not student.freeze_front_end:
        return
    weights = own_weights(checkpoint)  # an average of equal weights is rounded
    for name, tensor in student.model.feature_extractor.state_dict().items():
        saved = weights.get(f"student.model.feature_extractor.{name}")
        if saved is None or not torch.equal(tensor.cpu(), saved.cpu()):
            raise ConfigurationError(
                f"model.student.front_end_source is {source}, but the run was started with the "
                "front end of another model: give that one, or start a new run in another directory"
            )

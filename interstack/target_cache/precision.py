"""Whether a teacher's targets are right in the number formats of teacher and cache."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.models.precision import (
    SWITCH_OFF,
    PrecisionReport,
    number_format,
    relative_error,
    report_errors,
)
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.models.teacher import Teacher, check_teacher, require_teacher
from interstack.target_cache.record import CacheRecord
from interstack.target_cache.values import CacheDtype, collate_stored, restore, store

STORAGE_BOUNDS: Final[dict[CacheDtype, float]] = {"bfloat16": 0.01, "float16": 2e-3, "int8": 0.05}
"""The largest relative error of a hidden state that storing it may bring.

The 16-bit formats round a value by 2⁻⁹ (bfloat16) and 2⁻¹² (float16) of it at most; more means
that values lie below float16's least. ``int8`` depends on how far a channel's largest value in an
utterance is from the others. Measured on three trained encoders: at most 0.0026 in bfloat16, 0.0004
in float16 and 0.014 in int8; beyond the bounds a few values take all levels and the rest none."""


_FEATURES: Final = "the front end's features"


def check_targets(
    teacher: Teacher,
    batch: Batch,
    record: CacheRecord,
    device: torch.device,
    front_end: PretrainedFrontEnd | None = None,
) -> list[PrecisionReport]:
    """Compare targets with those of the teacher in float32, and what is stored with what was given.

    Args:
        teacher: On the device.
        batch: On the processor.
        record: The cache's facts.
        device: Where the teacher computes.
        front_end: On the device; gives the features in place of the teacher's front end.

    Returns:
        What was found of each format that is not float32.

    Raises:
        PrecisionError: If an error is more than rounding.
        DataError: If a target is not finite, or too large for the format.
    """
    reports = []
    waveforms, num_samples = batch.waveforms.to(device), batch.num_samples.to(device)
    if number_format(teacher, device) != "float32":
        reports.append(check_teacher(teacher, waveforms, num_samples))
        require_teacher(reports[-1], record.teacher_dtype)
    if record.dtype != "float32":
        features = record.num_features > 0 and front_end is None
        output = teacher(waveforms, num_samples, with_features=features)
        stored = {
            f"hidden state {tap}": (hidden, output.num_frames)
            for tap, hidden in zip(teacher.taps, output.hidden_states, strict=True)
        }
        if output.features is not None:
            stored[_FEATURES] = (output.features.transpose(1, 2), output.num_frames)
        elif record.num_features and front_end is not None:
            extracted = front_end(waveforms, num_samples).transpose(1, 2)
            stored[_FEATURES] = (extracted, front_end.num_frames(num_samples))
        errors = [
            (name, _storage_error(values, frames, batch, record.dtype))
            for name, (values, frames) in stored.items()
        ]
        bound = STORAGE_BOUNDS[record.dtype]
        reports.append(report_errors(errors, "stored targets", record.dtype, bound))
        reports[-1].require(
            f"--dtype {record.dtype}", f"give --dtype bfloat16 or float32, {SWITCH_OFF}"
        )
    return reports


def _storage_error(hidden: Tensor, num_frames: Tensor, batch: Batch, dtype: CacheDtype) -> float:
    """Return the largest relative error of an utterance's hidden state that was stored."""
    errors = []
    for row, frames in enumerate(num_frames.tolist()):
        exact = hidden[row, :frames].cpu()
        restored = restore(collate_stored([store(exact, dtype, batch.ids[row])]))[0]
        errors.append(relative_error(restored, exact))
    return max(errors)

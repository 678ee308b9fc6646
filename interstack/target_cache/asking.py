"""The teacher's answer to a batch, in the form in which it is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.models.teacher import Teacher, overflow_fix
from interstack.target_cache.record import CacheRecord
from interstack.target_cache.values import StoredValues, store


def ask_teacher(
    teacher: Teacher, batch: Batch, record: CacheRecord, device: torch.device
) -> list[StoredValues]:
    """Compute the targets of a batch.

    Args:
        teacher: On the device.
        batch: On the processor.
        record: The cache's facts.
        device: Where the teacher computes.

    Returns:
        What is stored of each utterance, (valid frames, channels), on the processor: the features,
        if the record wants them, then one hidden state a tap.

    Raises:
        DataError: If a value is not finite, or too large for the number format.
    """
    features, fix = record.num_features > 0, overflow_fix(record.teacher_dtype)
    waveforms, num_samples = batch.waveforms.to(device), batch.num_samples.to(device)
    output = teacher(waveforms, num_samples, with_features=features)
    parts: list[Tensor] = [*output.hidden_states]
    if features:
        parts.insert(0, output.features.transpose(1, 2))
    exact = torch.cat(parts, dim=-1)
    return [
        store(exact[row, :frames], record.dtype, batch.ids[row], fix).cpu()
        for row, frames in enumerate(output.num_frames.tolist())
    ]

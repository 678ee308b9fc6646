"""The teacher's answer to a batch, in the form in which it is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.models.teacher import Teacher, overflow_fix
from interstack.target_cache.record import CacheRecord
from interstack.target_cache.values import StoredValues, store


def ask_teacher(
    teacher: Teacher,
    batch: Batch,
    record: CacheRecord,
    device: torch.device,
    front_end: PretrainedFrontEnd | None = None,
) -> list[StoredValues]:
    """Compute the targets of a batch.

    Args:
        teacher: On the device.
        batch: On the processor.
        record: The cache's facts.
        device: Where the teacher computes.
        front_end: On the device; gives the features in place of the teacher's front end.

    Returns:
        What is stored of each utterance, (valid frames, channels), on the processor: the features,
        if the record wants them, then one hidden state a tap. A front end other than the teacher's
        may have other frames: the last frame of the shorter one is repeated, as the alignment with
        the student's frames repeats a target.

    Raises:
        DataError: If a value is not finite, or too large for the number format.
    """
    features, fix = record.num_features > 0, overflow_fix(record.teacher_dtype)
    waveforms, num_samples = batch.waveforms.to(device), batch.num_samples.to(device)
    output = teacher(waveforms, num_samples, with_features=features and front_end is None)
    states, frames = torch.cat(output.hidden_states, dim=-1), output.num_frames
    parts = [(states, frames.tolist())]
    if features and front_end is None:
        parts.insert(0, (output.features.transpose(1, 2), frames.tolist()))
    elif features and front_end is not None:
        own = front_end.num_frames(num_samples).tolist()
        parts.insert(0, (front_end(waveforms, num_samples).transpose(1, 2), own))
    stored = []
    for row, id_ in enumerate(batch.ids):
        longest = max(lengths[row] for _, lengths in parts)
        exact = [_extended(values[row], lengths[row], longest) for values, lengths in parts]
        stored.append(store(torch.cat(exact, dim=-1), record.dtype, id_, fix).cpu())
    return stored


def _extended(values: Tensor, frames: int, wanted: int) -> Tensor:
    """Return so many frames, the last valid one repeated where there are fewer."""
    if frames == wanted:
        return values[:frames]
    last = max(frames, 1)  # audio that is too short for one has a frame of padding
    return torch.cat([values[:last], values[last - 1].expand(wanted - last, -1)])

"""How large a cache will be, whether the disk can take it, and how long it takes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from transformers import HubertConfig

from interstack.data.assembling import BatchAssembler
from interstack.data.left_out import LeftOutHere
from interstack.errors import ConfigurationError
from interstack.models.front_end import num_frames
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.models.teacher import Teacher
from interstack.models.whisper import HOP
from interstack.target_cache.asking import ask_teacher
from interstack.target_cache.filling import SplitFiller
from interstack.target_cache.record import CacheRecord
from interstack.target_cache.values import TORCH_DTYPES

_HEADER_BYTES: Final = 300
"""About what an utterance takes in a shard's header and in the index."""
_SPARE: Final = 1.02


def cache_bytes(record: CacheRecord, lengths: Iterable[int]) -> int:
    """Return the bytes that utterances of these lengths take.

    Args:
        record: The cache's facts.
        lengths: Samples of every utterance after cropping, at 16 kHz.
    """
    num_samples = torch.tensor(list(lengths), dtype=torch.int64)
    if record.takes_waveform:
        frames = num_frames(record.teacher_config, num_samples)
    else:
        frames = (num_samples // HOP + 1) // 2
    if record.num_features and record.front_end_config is not None:
        own = num_frames(HubertConfig(**record.front_end_config), num_samples)
        frames = frames.maximum(own)
    values = int(frames.sum()) * record.num_channels * TORCH_DTYPES[record.dtype].itemsize
    levels = 8 * record.num_channels if record.dtype == "int8" else 0
    return values + len(num_samples) * (levels + _HEADER_BYTES)


def check_disk(directory: Path, needed: int) -> None:
    """Refuse a disk that is too small.

    Args:
        directory: The cache's; it exists.
        needed: Bytes still to write.

    Raises:
        ConfigurationError: With what is needed and what is free.
    """
    free = shutil.disk_usage(directory).free
    if needed * _SPARE > free:
        raise ConfigurationError(
            f"the targets still to be written to {directory} take {gigabytes(needed)}, but its "
            f"disk has {gigabytes(free)} free: give another --output, a smaller --dtype (float16, "
            "int8) or fewer model.teacher.taps"
        )


def gigabytes(num_bytes: float) -> str:
    """Write a size with a unit that suits it."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def measure_speed(
    filler: SplitFiller,
    teacher: Teacher,
    device: torch.device,
    front_end: PretrainedFrontEnd | None = None,
) -> float:
    """Measure the teacher on one batch of what is missing, of middling length.

    Args:
        filler: What is missing.
        teacher: On the device.
        device: Where it computes.
        front_end: On the device; see `ask_teacher`.

    Returns:
        Seconds of audio a second; 0 where nothing is known to be missing.
    """
    missing = sorted(filler.known_missing() or (), key=lambda utterance: filler.crop(utterance)[1])
    chosen = [
        utterance
        for number, utterance in enumerate(missing[len(missing) // 2 :], start=1)
        if number * filler.crop(utterance)[1] <= filler.settings.batch_samples
    ]
    settings = replace(filler.settings, left_out=LeftOutHere())  # it counts when it is computed
    batch = BatchAssembler(settings, filler.epoch)(chosen) if chosen else None
    if batch is None:
        return 0.0
    ask_teacher(teacher, batch, filler.record, device, front_end)  # the first time is slower
    begin = time.perf_counter()
    ask_teacher(teacher, batch, filler.record, device, front_end)
    return float(batch.seconds) / (time.perf_counter() - begin)

"""Making a cache from beginning to end: facts, estimate, checks, one pass a split, the seal."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import HubertConfig

from interstack.constants import SAMPLE_RATE
from interstack.data.base import Split
from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.data.dataset import BatchAssembler, first_utterances
from interstack.data.skips import LeftOutHere
from interstack.errors import ConfigurationError
from interstack.models.config import TeacherConfig
from interstack.models.front_end import num_frames
from interstack.models.precision import (
    SWITCH_OFF,
    PrecisionReport,
    number_format,
    relative_error,
    report_errors,
)
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.models.teacher import Teacher, check_teacher, require_teacher
from interstack.models.whisper import HOP
from interstack.target_cache.format import TORCH_DTYPES, CacheDtype, collate_stored, restore, store
from interstack.target_cache.manifest import RECORD_FILE, CacheRecord
from interstack.target_cache.partition import Share
from interstack.target_cache.progress import CacheProgress
from interstack.target_cache.reader import write_front_end
from interstack.target_cache.writer import SplitFiller, ask_teacher
from interstack.tracking.events import append_event
from interstack.utils.disk import is_there, reason, write_errors
from interstack.utils.lock import run_lock

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
    elif record.family is not None:
        frames = num_samples // record.frame_hop + 1
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


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheOptions:
    """How a cache is made.

    Attributes:
        output: Its directory.
        dtype: Number format.
        with_features: Store the front end's features, for a student that shares it.
        front_end: That of ``model.student.front_end_source``, stored in place of the teacher's.
        splits: What it is made of.
        share: This process' part of every split.
        device: Where the teacher computes.
        shard_bytes: Size from which on a shard is written.
        precision_check: Compare one batch with float32 before anything else is computed.
    """

    output: Path
    dtype: CacheDtype = "float16"
    with_features: bool = False
    front_end: PretrainedFrontEnd | None = None
    splits: tuple[Split, ...] = ("train", "validation")
    share: Share = field(default_factory=Share)
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    shard_bytes: int = 256 * 10**6
    precision_check: bool = True


def make_cache(
    datamodule: SpeechDataModule, config: TeacherConfig, teacher: Teacher, options: CacheOptions
) -> int:
    """Compute what is still missing of a cache; it may stop anywhere and be called again.

    Args:
        datamodule: With its splits set up, and no cache of its own.
        config: The teacher's settings.
        teacher: The teacher.
        options: The rest.

    Returns:
        The number of utterances that other shares still have to compute; 0: the cache is finished.

    Raises:
        ConfigurationError: If the directory holds something else, another process has the same
            share, or the disk is too small.
        PrecisionError: If teacher or number format are further from float32 than rounding is.
        DataError: If audio can't be read, or a target can't be stored.
        InterstackError: If the disk is full.
        RunInterrupted: After a signal, with what is done kept.
    """
    output, share = options.output, options.share
    check_directory(output)
    teacher.to(options.device)
    if options.front_end is not None:
        options.front_end.to(options.device)
    fix = "free space; what is done is kept, and the same command goes on from there"
    with run_lock(output / f"share-{share}", "give another --share"), write_errors(output, fix):
        _agree(
            CacheRecord.of(
                config,
                teacher,
                options.dtype,
                with_features=options.with_features,
                front_end=options.front_end,
            ),
            teacher,
            options,
        )
        record = CacheRecord.read(output)
        fillers = []
        for split in options.splits:
            utterances, settings = datamodule.utterances_once(split)
            fillers.append(SplitFiller(output / split, split, record, utterances, settings, share))
        seconds = _announce(fillers, record, teacher, options)
        if options.precision_check and seconds != 0.0:
            _check_precision(datamodule, record, teacher, options)
        remaining = 0
        with CacheProgress(seconds, shown=share.index == 0) as progress:
            for filler in fillers:
                filler.fill(
                    teacher,
                    options.device,
                    options.shard_bytes,
                    datamodule.num_workers,
                    progress.advance,
                    options.front_end,
                )
                filler.report()
                remaining += filler.seal()
    return remaining


def check_directory(output: Path) -> None:
    """Refuse a directory that can't be made, or that holds something else than a cache.

    Raises:
        ConfigurationError: In these cases.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        strangers = [
            path.name
            for path in output.iterdir()
            if not path.name.startswith((".", RECORD_FILE, "front_end"))
        ]
    except OSError as error:
        raise ConfigurationError(
            f"the cache's directory {output} can't be made ({reason(error)}): give another --output"
        ) from error
    if strangers and not is_there(output / RECORD_FILE):
        raise ConfigurationError(
            f"{output} holds {strangers[0]} and no cache: give --output an empty directory, or a "
            "new one"
        )


def _agree(wanted: CacheRecord, teacher: Teacher, options: CacheOptions) -> None:
    """Begin a cache, or see that the one that has been begun is the one that is wanted."""
    output = options.output
    if is_there(output / RECORD_FILE):
        CacheRecord.read(output).check_same(wanted, output)
        return
    write_front_end(teacher, output, options.front_end)
    wanted.write(output)  # last: what it describes is there


def _announce(
    fillers: Sequence[SplitFiller], record: CacheRecord, teacher: Teacher, options: CacheOptions
) -> float | None:
    """Say how large the work is, and refuse a disk that can't take it; None: nobody knows.

    Returns:
        The seconds of audio that are to be computed.
    """
    missing = [(filler, filler.known_missing()) for filler in fillers]
    if any(utterances is None for _, utterances in missing):
        log.info("targets of a stream, whose length shows at its end, go to %s", options.output)
        return None
    lengths = [filler.crop(utterance)[1] for filler, found in missing for utterance in found or ()]
    size, seconds = cache_bytes(record, lengths), sum(lengths) / SAMPLE_RATE
    check_disk(options.output, size)
    if not lengths:
        log.info("all targets of this share are in %s", options.output)
        return 0.0
    speed = max(
        measure_speed(filler, teacher, options.device, options.front_end) for filler in fillers
    )
    log.info(
        "%d utterances, %.2f hours of audio: %s as %s in %s, about %s",
        len(lengths),
        seconds / 3600,
        gigabytes(size),
        record.dtype,
        options.output,
        _duration(seconds / speed) if speed else "an unknown time",
    )
    return seconds


def _check_precision(
    datamodule: SpeechDataModule, record: CacheRecord, teacher: Teacher, options: CacheOptions
) -> None:
    """Compare the targets of some utterances with float32; nothing where all is in it.

    Raises:
        PrecisionError: If an error is more than rounding.
    """
    if number_format(teacher, options.device) == record.dtype == "float32":
        return
    split = options.splits[0]
    batch = first_utterances(datamodule, split, 0 if split == "train" else None)
    if batch is None:
        return
    for report in check_targets(teacher, batch, record, options.device, options.front_end):
        log.info("%s", report)
        append_event(options.output, {"kind": "precision", "step": 0, **report.to_primitives()})


def _duration(seconds: float) -> str:
    """Write a time as hours, minutes and seconds."""
    return (
        time.strftime("%H:%M:%S", time.gmtime(seconds))
        if seconds < 86_400
        else (f"{seconds / 86_400:.1f} days")
    )

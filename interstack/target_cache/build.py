"""Making a cache from start to end: facts, estimate, checks, one pass a split, the index."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import HubertConfig

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Utterance
from interstack.data.base import Split
from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.data.dataset import BatchAssembler, first_utterances
from interstack.data.skips import SkipCounter
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
from interstack.target_cache.partition import Partition
from interstack.target_cache.reader import write_front_end
from interstack.target_cache.writer import SplitWriter, compute_targets, teacher_outputs
from interstack.tracking.events import append_event
from interstack.utils.disk import is_there, reason, write_errors
from interstack.utils.lock import run_lock
from interstack.utils.progress import Reading, RunPosition, job_display
from interstack.utils.units import format_bytes, format_duration

STORAGE_BOUNDS: Final[dict[CacheDtype, float]] = {"bfloat16": 0.01, "float16": 2e-3, "int8": 0.05}
"""The largest relative error of a hidden state that storing it may bring.

The 16-bit formats round a value by 2⁻⁹ (bfloat16) and 2⁻¹² (float16) of it at most; more means
that values lie below float16's least. ``int8`` depends on how far a channel's largest value in an
utterance is from the others. Measured on three trained encoders: at most 0.0026 in bfloat16, 0.0004
in float16 and 0.014 in int8; beyond the bounds a few values take all levels and the rest none."""
_HEADER_BYTES: Final = 300
"""About what an utterance takes in a shard's header and in the index."""
_SPARE: Final = 1.02

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
        partition: What this process computes of every split.
        device: Where the teacher computes.
        shard_bytes: Size from which on a shard is written.
        precision_check: Compare one batch with float32 before anything else is computed.
    """

    output: Path
    dtype: CacheDtype = "float16"
    with_features: bool = False
    front_end: PretrainedFrontEnd | None = None
    splits: tuple[Split, ...] = ("train", "validation")
    partition: Partition = field(default_factory=Partition)
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
        The number of utterances that other partitions still have to compute; 0: the cache is
        finished.

    Raises:
        ConfigurationError: If the directory holds something else, another process has the same
            partition, or the disk is too small.
        PrecisionError: If teacher or number format are further from float32 than rounding is.
        DataError: If audio can't be read, or a target can't be stored.
        InterstackError: If the disk is full.
        RunInterrupted: After a signal, with what is done kept.
    """
    output = options.output
    _check_directory(output)
    teacher.to(options.device)
    if options.front_end is not None:
        options.front_end.to(options.device)
    with _locked(options):
        record = _agreed_record(config, teacher, options)
        writers = []
        for split in options.splits:
            utterances, settings = datamodule.utterances_once(split)
            writers.append(
                SplitWriter(output / split, split, record, utterances, settings, options.partition)
            )
        seconds = _announce(writers, record, teacher, options)
        if options.precision_check and seconds != 0.0:
            _check_precision(datamodule, record, teacher, options)
        return _fill(writers, teacher, options, datamodule.num_workers, seconds)


def _check_directory(output: Path) -> None:
    """Refuse a directory that can't be made, or that holds something else than a cache."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        others = [
            path.name
            for path in output.iterdir()
            if not path.name.startswith((".", RECORD_FILE, "front_end"))
        ]
    except OSError as error:
        raise ConfigurationError(
            f"the cache's directory {output} can't be made ({reason(error)}): give another --output"
        ) from error
    if others and not is_there(output / RECORD_FILE):
        raise ConfigurationError(
            f"{output} holds {others[0]} and no cache: give --output an empty directory, or a new "
            "one"
        )


@contextmanager
def _locked(options: CacheOptions) -> Iterator[None]:
    """Keep other processes from the partition, and turn failing writes into one line."""
    fix = "free space; what is done is kept, and the same command continues from there"
    lock = options.output / f"share-{options.partition}"
    with run_lock(lock, "give another --share"), write_errors(options.output, fix):
        yield


def _agreed_record(config: TeacherConfig, teacher: Teacher, options: CacheOptions) -> CacheRecord:
    """Return the facts of the cache: those that are there, if they are the required ones."""
    output = options.output
    wanted = CacheRecord.of(
        config,
        teacher,
        options.dtype,
        with_features=options.with_features,
        front_end=options.front_end,
    )
    if is_there(output / RECORD_FILE):
        CacheRecord.read(output).check_same(wanted, output)
    else:
        write_front_end(teacher, output, options.front_end)
        wanted.write(output)  # last: what it describes is there
    return CacheRecord.read(output)


def _announce(
    writers: Sequence[SplitWriter], record: CacheRecord, teacher: Teacher, options: CacheOptions
) -> float | None:
    """Log how large the work is, and refuse a disk that is too small.

    Returns:
        The seconds of audio that are to be computed; None for a stream.
    """
    missing = [(writer, writer.known_missing()) for writer in writers]
    if any(utterances is None for _, utterances in missing):
        log.info("targets of a stream, whose length shows at its end, go to %s", options.output)
        return None
    lengths = [writer.crop(utterance)[1] for writer, found in missing for utterance in found or ()]
    size, seconds = _cache_bytes(record, lengths), sum(lengths) / SAMPLE_RATE
    free = shutil.disk_usage(options.output).free
    if size * _SPARE > free:
        raise ConfigurationError(
            f"the targets still to be written to {options.output} take {format_bytes(size)}, but "
            f"its disk has {format_bytes(free)} free: give another --output, a smaller --dtype "
            "(float16, int8) or fewer model.teacher.taps"
        )
    if not lengths:
        log.info("all targets of this partition are in %s", options.output)
        return 0.0
    speed = max(_measure_speed(writer, found or (), teacher, options) for writer, found in missing)
    log.info(
        "%d utterances, %.2f hours of audio: %s as %s in %s, about %s",
        len(lengths),
        seconds / 3600,
        format_bytes(size),
        record.dtype,
        options.output,
        format_duration(seconds / speed) if speed else "an unknown time",
    )
    return seconds


def _cache_bytes(record: CacheRecord, lengths: Iterable[int]) -> int:
    """Return the bytes that utterances of so many samples take."""
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


def _measure_speed(
    writer: SplitWriter, missing: Sequence[Utterance], teacher: Teacher, options: CacheOptions
) -> float:
    """Measure the teacher on one batch of medium length.

    Returns:
        Seconds of audio a second; 0 where nothing is missing or nothing can be read.
    """
    by_length = sorted(missing, key=lambda utterance: writer.crop(utterance)[1])
    chosen = [
        utterance
        for number, utterance in enumerate(by_length[len(by_length) // 2 :], start=1)
        if number * writer.crop(utterance)[1] <= writer.settings.batch_samples
    ]
    settings = replace(writer.settings, skips=SkipCounter())  # it counts when it is computed
    batch = BatchAssembler(settings, writer.epoch)(chosen) if chosen else None
    if batch is None:
        return 0.0
    compute = partial(
        compute_targets, teacher, batch, writer.record, options.device, options.front_end
    )
    compute()  # the first time is slower
    start = time.perf_counter()
    compute()
    return float(batch.seconds) / (time.perf_counter() - start)


def _check_precision(
    datamodule: SpeechDataModule, record: CacheRecord, teacher: Teacher, options: CacheOptions
) -> None:
    """Compare the teacher with float32, and what is stored with what was computed.

    Raises:
        PrecisionError: If an error is more than rounding.
        DataError: If a target is not finite, or too large for the format.
    """
    if number_format(teacher, options.device) == record.dtype == "float32":
        return
    split = options.splits[0]
    batch = first_utterances(datamodule, split, 0 if split == "train" else None)
    if batch is None:
        return
    for report in _precision_reports(teacher, batch, record, options):
        log.info("%s", report)
        append_event(options.output, {"kind": "precision", "step": 0, **report.to_primitives()})


def _precision_reports(
    teacher: Teacher, batch: Batch, record: CacheRecord, options: CacheOptions
) -> list[PrecisionReport]:
    reports, device = [], options.device
    if number_format(teacher, device) != "float32":
        waveforms, num_samples = batch.waveforms.to(device), batch.num_samples.to(device)
        reports.append(check_teacher(teacher, waveforms, num_samples))
        require_teacher(reports[-1], record.teacher_dtype)
    if record.dtype != "float32":
        outputs = teacher_outputs(teacher, batch, record, device, options.front_end)
        errors = [
            (name, _storage_error(values, frames, batch, record.dtype))
            for name, (values, frames) in outputs.items()
        ]
        bound = STORAGE_BOUNDS[record.dtype]
        reports.append(report_errors(errors, "stored targets", record.dtype, bound))
        reports[-1].require(
            f"--dtype {record.dtype}", f"give --dtype bfloat16 or float32, {SWITCH_OFF}"
        )
    return reports


def _storage_error(values: Tensor, num_frames: Tensor, batch: Batch, dtype: CacheDtype) -> float:
    """Return the largest relative error of an utterance's values that were stored."""
    errors = []
    for row, frames in enumerate(num_frames.tolist()):
        exact = values[row, :frames].cpu()
        restored = restore(collate_stored([store(exact, dtype, batch.ids[row])]))[0]
        errors.append(relative_error(restored, exact))
    return max(errors)


def _fill(
    writers: Sequence[SplitWriter],
    teacher: Teacher,
    options: CacheOptions,
    workers: int,
    seconds: float | None,
) -> int:
    """Compute what is missing, and return how many utterances others still have to compute."""
    remaining, num_done, seconds_done = 0, 0, 0.0
    total = None if seconds is None else round(seconds)
    with job_display(draws=options.partition.index == 0) as display:

        def count(num_utterances: int, batch_seconds: float) -> None:
            nonlocal num_done, seconds_done
            num_done += num_utterances
            seconds_done += batch_seconds
            position = RunPosition(round(seconds_done), total, "seconds of audio")
            display.update(Reading(("targets",), position, (f"{num_done:,} utterances",)))

        for writer in writers:
            writer.fill(
                teacher, options.device, options.shard_bytes, workers, count, options.front_end
            )
            writer.report_skipped()
            remaining += writer.finish()
    return remaining

"""Making a cache from beginning to end: facts, estimate, one pass a split, the seal."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from interstack.checkpointing.disk import is_there, reason, write_errors
from interstack.checkpointing.run_lock import run_lock
from interstack.constants import SAMPLE_RATE
from interstack.data.datamodule import SpeechDataModule
from interstack.data.sampling import first_utterances
from interstack.data.source import Split
from interstack.errors import ConfigurationError
from interstack.models.config import TeacherConfig
from interstack.models.precision import number_format
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.models.teacher import Teacher
from interstack.target_cache.estimate import (
    cache_bytes,
    check_disk,
    gigabytes,
    measure_speed,
)
from interstack.target_cache.filling import SplitFiller
from interstack.target_cache.precision import check_targets
from interstack.target_cache.progress import CacheProgress
from interstack.target_cache.record import RECORD_FILE, CacheRecord
from interstack.target_cache.share import Share
from interstack.target_cache.teacher import write_front_end
from interstack.target_cache.values import CacheDtype
from interstack.tracking.events import append_event

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

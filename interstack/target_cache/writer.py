"""The teacher's answer to a batch, in the form in which it is stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Utterance
from interstack.data.base import FeedSettings
from interstack.data.batch import Batch
from interstack.data.bucketing import plan_batches
from interstack.data.dataset import BatchAssembler, BatchDataset, checksum
from interstack.data.loader import SpeechLoader
from interstack.data.skips import LeftOutHere, LeftOutSoFar, report_skipped
from interstack.errors import ConfigurationError, InterstackError, RunInterrupted
from interstack.models.pretrained_front_end import PretrainedFrontEnd
from interstack.models.teacher import Teacher, overflow_fix
from interstack.target_cache.format import (
    SUFFIX,
    Entry,
    StoredValues,
    read_entries,
    shards_of,
    store,
    write_shard,
)
from interstack.target_cache.manifest import CacheRecord
from interstack.target_cache.partition import Share
from interstack.target_cache.reader import SplitIndex
from interstack.utils.atomic import remove_parts, write_whole
from interstack.utils.disk import reason
from interstack.utils.signals import StopRequest


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


_WINDOW_UTTERANCES: Final = 1_000_000
_WINDOW_BYTES: Final = 512 * 2**20
"""What is sorted by length together: a folder's files, or as much of a stream as can be held."""


class Listener(Protocol):
    """Hears how the work goes on."""

    def __call__(self, num_utterances: int, seconds: float) -> None:
        """Called after each batch.

        Args:
            num_utterances: How many it held.
            seconds: Of audio.
        """


class SplitFiller:
    """Computes one process' share of a split.

    What is there already is not computed again. Shards are written whole, so that whatever stops
    the work, no more than one of them is lost.

    Args:
        directory: The split's.
        name: ``train``, ``validation`` or ``test``.
        record: The cache's facts.
        utterances: All of the split's.
        settings: How they become waveforms.
        share: What this process computes of them.

    Raises:
        ConfigurationError: If what is there was computed from other audio or other crops, or crops
            move from epoch to epoch.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        record: CacheRecord,
        utterances: Iterable[Utterance],
        settings: FeedSettings,
        share: Share,
    ) -> None:
        self.directory = directory
        self.name = name
        self.record = record
        self.utterances = utterances
        self.settings = settings
        self.share = share
        self.epoch = 0 if name == "train" else None
        self._decoder = settings.decoder(self.epoch)
        directory.mkdir(parents=True, exist_ok=True)
        remove_parts(directory)
        self.done = {
            entry.id: entry for path in shards_of(directory) for entry in read_entries(path)
        }
        self._expected: set[str] = set()
        self._left_out: list[str] = []
        self._skipped = LeftOutSoFar(announced=False)

    # What there is to do ------------------------------------------------------------------------

    def crop(self, utterance: Utterance) -> tuple[int, int]:
        """Return the first sample and the length of what the teacher hears.

        Raises:
            ConfigurationError: If that moves from epoch to epoch.
        """
        start, length = self._decoder.crop(utterance)
        if (
            length < utterance.num_samples
            and self.name == "train"
            and self.settings.crop != "fixed"
        ):
            raise ConfigurationError(
                f"{utterance.name} is cropped to {length / SAMPLE_RATE:g} s, at another place each "
                "epoch, for which a cache can't hold targets: give data.crop fixed, also to fit"
            )
        return start, length

    def missing(self) -> Iterator[Utterance]:
        """Yield what this process still has to compute, in the order of the corpus."""
        for utterance in self.utterances:
            crop = self.crop(utterance)
            self._expected.add(utterance.id)
            entry = self.done.get(utterance.id)
            if entry is not None:
                self._check_same(utterance, entry, crop)
            elif self.share.holds(utterance.id):
                yield utterance

    def _check_same(self, utterance: Utterance, entry: Entry, crop: tuple[int, int]) -> None:
        if (entry.num_samples, entry.start, entry.length) != (utterance.num_samples, *crop):
            raise ConfigurationError(
                f"{self.directory} holds targets of {utterance.id} for {entry.length} samples from "
                f"{entry.start} of {entry.num_samples}; now they would be {crop[1]} from {crop[0]} "
                f"of {utterance.num_samples}: the corpus or data.max_seconds is another one; give "
                "another --output"
            )

    def known_missing(self) -> list[Utterance] | None:
        """Return the same for a corpus that is known beforehand; None for a stream."""
        return list(self.missing()) if isinstance(self.utterances, Sequence) else None

    # Doing it -----------------------------------------------------------------------------------

    def fill(
        self,
        teacher: Teacher,
        device: torch.device,
        shard_bytes: int,
        workers: int,
        tell: Listener,
        front_end: PretrainedFrontEnd | None = None,
    ) -> None:
        """Compute and write what is missing of the share.

        Args:
            teacher: On the device.
            device: Where it computes.
            shard_bytes: Size from which on a shard is written.
            workers: Processes that decode.
            tell: Hears of every batch.
            front_end: On the device; see `ask_teacher`.

        Raises:
            RunInterrupted: After SIGTERM, SIGUSR1 or Ctrl-C, with what is done written.
            DataError: If audio can't be read, or a target can't be stored.
            InterstackError: If the disk is full.
        """
        stop = StopRequest("stopping after this batch; what is done is kept")
        pending: list[tuple[Entry, StoredValues]] = []
        with ExitStack() as cleanup:
            stop.listen()
            cleanup.callback(stop.leave)
            cleanup.callback(lambda: self._write(pending))
            for utterances, batch in self._batches(workers):
                told = ask_teacher(teacher, batch, self.record, device, front_end)
                for row, (id_, stored) in enumerate(zip(batch.ids, told, strict=True)):
                    entry = self._entry(utterances[id_], batch.waveforms[row])
                    self.done[id_] = entry
                    pending.append((entry, stored))
                tell(len(batch.ids), float(batch.seconds))
                if sum(_bytes(stored) for _, stored in pending) >= shard_bytes:
                    self._write(pending)
                if stop.received is not None:
                    raise RunInterrupted(
                        f"stopped by {stop.received.name}: {len(self.done)} utterances of "
                        f"{self.name} are kept; the same command goes on from there",
                        stop.received,
                    )

    def _batches(self, workers: int) -> Iterator[tuple[dict[str, Utterance], Batch]]:
        """Yield batches of like lengths, the longest first, with their utterances by id."""
        missing = self.missing()
        settings = replace(self.settings, left_out=LeftOutHere())  # apart from a stream's headers
        for window in _windows(missing):
            lengths = [self.crop(utterance)[1] for utterance in window]
            plan = plan_batches(lengths, self.settings.batch_samples).batches()[::-1]
            batches = [[window[index] for index in batch] for batch in plan]
            by_id = {utterance.id: utterance for utterance in window}
            dataset = BatchDataset(batches, BatchAssembler(settings, self.epoch))
            seen: set[str] = set()
            for batch in SpeechLoader(dataset, workers, settings.seed, self._skipped):
                if not seen.issuperset(batch.ids):  # one that can't be read is replaced by another
                    yield by_id, batch
                seen.update(batch.ids)
            self._left_out += sorted(by_id.keys() - seen)

    def report(self) -> None:
        """Log how many utterances of this partition could not be read, and the first."""
        headers, loaded = self.settings.left_out.take(), self._skipped.total
        count = headers.skipped + len(self._left_out)
        example = headers.example or loaded.example
        report_skipped(count, example, f"utterances of {self.name}")

    def _entry(self, utterance: Utterance, waveform: Tensor) -> Entry:
        start, length = self.crop(utterance)
        check = checksum(waveform[:length])
        return Entry(utterance.id, utterance.num_samples, start, length, check)

    def _write(self, pending: list[tuple[Entry, StoredValues]]) -> None:
        """Write a shard, and begin a new one."""
        if not pending:
            return
        taken = {path.name for path in shards_of(self.directory)}
        names = (f"{self.share}-{number:05d}{SUFFIX}" for number in range(len(taken) + 1))
        name = next(name for name in names if name not in taken)
        try:
            write_shard(self.directory / name, pending)
        except OSError as error:
            kept = len(self.done) - len(pending)
            pending.clear()
            raise InterstackError(
                f"a shard can't be written to {self.directory} ({reason(error)}): free space; "
                f"{kept} utterances of {self.name} are kept, and the same command goes on from "
                "there"
            ) from error
        pending.clear()

    # The end ------------------------------------------------------------------------------------

    def seal(self) -> int:
        """Declare the split finished, if all shares of it are.

        Returns:
            The number of utterances that others still have to compute.

        Raises:
            OSError: If the index can't be written.
        """
        own = self.directory / f"left-out-{self.share}.json"
        if self._left_out:
            write_whole(own, json.dumps(self._left_out).encode())
        else:
            own.unlink(missing_ok=True)
        places = [
            (path.name, row, entry)
            for path in shards_of(self.directory)
            for row, entry in enumerate(read_entries(path))
        ]
        present = {entry.id for _, _, entry in places}
        left_out = {
            id_
            for path in self.directory.glob("left-out-*.json")
            for id_ in json.loads(path.read_text())
        }
        remaining = len(self._expected - present - left_out)
        if not remaining:
            SplitIndex(places, sorted(left_out - present)).write(self.directory)
        return remaining


def _windows(utterances: Iterable[Utterance]) -> Iterator[list[Utterance]]:
    window: list[Utterance] = []
    held = 0
    for utterance in utterances:
        window.append(utterance)
        held += len(utterance.audio) if isinstance(utterance.audio, bytes) else 0
        if held >= _WINDOW_BYTES or len(window) == _WINDOW_UTTERANCES:
            yield window
            window, held = [], 0
    if window:
        yield window


def _bytes(stored: StoredValues) -> int:
    return sum(part.numel() * part.element_size() for part in stored if part is not None)

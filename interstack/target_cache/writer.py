"""Computing a cache: the targets of a batch, and one process' partition of a split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from interstack.data.audio import Utterance
from interstack.data.base import FeedSettings
from interstack.data.batch import Batch
from interstack.data.bucketing import plan_batches
from interstack.data.dataset import BatchAssembler, BatchDataset, checksum
from interstack.data.loader import SpeechLoader
from interstack.data.skips import SkipCounter, SkipTotals, report_skipped
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
from interstack.target_cache.partition import Partition
from interstack.target_cache.reader import SplitIndex
from interstack.utils.atomic import remove_parts, write_whole
from interstack.utils.disk import reason
from interstack.utils.signals import StopRequest

_WINDOW_UTTERANCES: Final = 1_000_000
_WINDOW_BYTES: Final = 512 * 2**20
"""What is sorted by length together: a folder's files, or as much of a stream as can be held."""


def teacher_outputs(
    teacher: Teacher,
    batch: Batch,
    record: CacheRecord,
    device: torch.device,
    front_end: PretrainedFrontEnd | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Run the teacher on a batch.

    Args:
        teacher: On the device.
        batch: On the CPU.
        record: The cache's facts.
        device: Where the teacher computes.
        front_end: On the device; gives the features in place of the teacher's front end.

    Returns:
        What is stored, by its name in reports and in the order of storage: values
        (batch, frames, channels) and the valid frames (batch,) of the features, if the record has
        them, and of one hidden state a tap.
    """
    waveforms, num_samples = batch.waveforms.to(device), batch.num_samples.to(device)
    with_features = record.num_features > 0
    output = teacher(waveforms, num_samples, with_features=with_features and front_end is None)
    outputs = {}
    if output.features is not None:
        outputs["the front end's features"] = (output.features.transpose(1, 2), output.num_frames)
    elif with_features and front_end is not None:
        features = front_end(waveforms, num_samples).transpose(1, 2)
        outputs["the front end's features"] = (features, front_end.num_frames(num_samples))
    for tap, hidden in zip(teacher.taps, output.hidden_states, strict=True):
        outputs[f"hidden state {tap}"] = (hidden, output.num_frames)
    return outputs


def compute_targets(
    teacher: Teacher,
    batch: Batch,
    record: CacheRecord,
    device: torch.device,
    front_end: PretrainedFrontEnd | None = None,
) -> list[StoredValues]:
    """Compute the targets of a batch; see `teacher_outputs` for the arguments.

    Returns:
        What is stored of each utterance, (valid frames, channels), on the CPU. A front end other
        than the teacher's may have other frames: the last frame of the shorter one is repeated, as
        the alignment with the student's frames repeats a target.

    Raises:
        DataError: If a value is not finite, or too large for the number format.
    """
    outputs = teacher_outputs(teacher, batch, record, device, front_end)
    parts = [(values, frames.tolist()) for values, frames in outputs.values()]
    fix = overflow_fix(record.teacher_dtype)
    stored = []
    for row, id_ in enumerate(batch.ids):
        longest = max(frames[row] for _, frames in parts)
        exact = [_extended(values[row], frames[row], longest) for values, frames in parts]
        stored.append(store(torch.cat(exact, dim=-1), record.dtype, id_, fix).cpu())
    return stored


def _extended(values: Tensor, frames: int, wanted: int) -> Tensor:
    """Return so many frames, the last valid one repeated where there are fewer."""
    if frames == wanted:
        return values[:frames]
    last = max(frames, 1)  # audio that is too short for one has a frame of padding
    return torch.cat([values[:last], values[last - 1].expand(wanted - last, -1)])


class SplitWriter:
    """Computes one process' partition of a split.

    What is there already is not computed again. Shards are written atomically, so that whatever
    stops the work, no more than one of them is lost.

    Args:
        directory: The split's.
        name: ``train``, ``validation`` or ``test``.
        record: The cache's facts.
        utterances: All of the split's.
        settings: How they become waveforms.
        partition: Which of them this process computes.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        record: CacheRecord,
        utterances: Iterable[Utterance],
        settings: FeedSettings,
        partition: Partition,
    ) -> None:
        self.directory = directory
        self.name = name
        self.record = record
        self.utterances = utterances
        self.settings = settings
        self.partition = partition
        self.epoch = 0 if name == "train" else None
        self._decoder = settings.decoder(self.epoch)
        directory.mkdir(parents=True, exist_ok=True)
        remove_parts(directory)
        self.done = {
            entry.id: entry for path in shards_of(directory) for entry in read_entries(path)
        }
        self._expected: set[str] = set()
        self._skipped_ids: list[str] = []
        self._skipped = SkipTotals(announced=False)

    def crop(self, utterance: Utterance) -> tuple[int, int]:
        """Return the first sample and the length of the teacher's input.

        Raises:
            ConfigurationError: If that moves from epoch to epoch.
        """
        start, length = self._decoder.crop(utterance)
        if self.name == "train":
            self.settings.check_fixed_crop(utterance, length)
        return start, length

    def missing(self) -> Iterator[Utterance]:
        """Yield what this process still has to compute, in the order of the corpus.

        Raises:
            ConfigurationError: If what is there was computed from other audio or other crops, or
                crops move from epoch to epoch.
        """
        for utterance in self.utterances:
            start, length = self.crop(utterance)
            self._expected.add(utterance.id)
            entry = self.done.get(utterance.id)
            if entry is None:
                if self.partition.holds(utterance.id):
                    yield utterance
            elif (entry.num_samples, entry.start, entry.length) != (
                utterance.num_samples,
                start,
                length,
            ):
                raise ConfigurationError(
                    f"{self.directory} holds targets of {utterance.id} for {entry.length} samples "
                    f"from {entry.start} of {entry.num_samples}; now they would be {length} from "
                    f"{start} of {utterance.num_samples}: the corpus or data.max_seconds is "
                    "another one; give another --output"
                )

    def known_missing(self) -> list[Utterance] | None:
        """Return the same for a corpus that is known beforehand; None for a stream."""
        return list(self.missing()) if isinstance(self.utterances, Sequence) else None

    def fill(
        self,
        teacher: Teacher,
        device: torch.device,
        shard_bytes: int,
        workers: int,
        on_batch: Callable[[int, float], None],
        front_end: PretrainedFrontEnd | None = None,
    ) -> None:
        """Compute and write what is missing of the partition.

        Args:
            teacher: On the device.
            device: Where it computes.
            shard_bytes: Size from which on a shard is written.
            workers: Processes that decode.
            on_batch: Called after each batch with its number of utterances and seconds of audio.
            front_end: On the device; see `teacher_outputs`.

        Raises:
            RunInterrupted: After SIGTERM, SIGUSR1 or Ctrl-C, with what is done written.
            DataError: If audio can't be read, or a target can't be stored.
            InterstackError: If the disk is full.
        """
        pending: list[tuple[Entry, StoredValues]] = []
        with StopRequest("stopping after this batch; what is done is kept") as stop:
            try:
                for utterances, batch in self._batches(workers):
                    targets = compute_targets(teacher, batch, self.record, device, front_end)
                    for row, (id_, stored) in enumerate(zip(batch.ids, targets, strict=True)):
                        entry = self._entry(utterances[id_], batch.waveforms[row])
                        self.done[id_] = entry
                        pending.append((entry, stored))
                    on_batch(len(batch.ids), float(batch.seconds))
                    if sum(stored.num_bytes for _, stored in pending) >= shard_bytes:
                        self._write(pending)
                    if stop.received is not None:
                        raise RunInterrupted(
                            f"stopped by {stop.received.name}: {len(self.done)} utterances of "
                            f"{self.name} are kept; the same command continues from there",
                            stop.received,
                        )
            finally:
                self._write(pending)

    def _batches(self, workers: int) -> Iterator[tuple[dict[str, Utterance], Batch]]:
        """Yield batches of similar lengths, the longest first, with their utterances by id."""
        settings = replace(self.settings, skips=SkipCounter())  # apart from a stream's headers
        for window in _windows(self.missing()):
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
            self._skipped_ids += sorted(by_id.keys() - seen)

    def _entry(self, utterance: Utterance, waveform: Tensor) -> Entry:
        start, length = self.crop(utterance)
        check = checksum(waveform[:length])
        return Entry(utterance.id, utterance.num_samples, start, length, check)

    def _write(self, pending: list[tuple[Entry, StoredValues]]) -> None:
        """Write what is pending as a shard, and empty it."""
        if not pending:
            return
        taken = {path.name for path in shards_of(self.directory)}
        names = (f"{self.partition}-{number:05d}{SUFFIX}" for number in range(len(taken) + 1))
        name = next(name for name in names if name not in taken)
        try:
            write_shard(self.directory / name, pending)
        except OSError as error:
            kept = len(self.done) - len(pending)
            raise InterstackError(
                f"a shard can't be written to {self.directory} ({reason(error)}): free space; "
                f"{kept} utterances of {self.name} are kept, and the same command continues from "
                "there"
            ) from error
        finally:
            pending.clear()

    def report_skipped(self) -> None:
        """Log how many utterances of this partition could not be read, and the first."""
        headers, loaded = self.settings.skips.take(), self._skipped.total
        count = headers.skipped + len(self._skipped_ids)
        report_skipped(count, headers.example or loaded.example, f"utterances of {self.name}")

    def finish(self) -> int:
        """Declare the split finished, if all of its partitions are.

        Returns:
            The number of utterances that others still have to compute.

        Raises:
            OSError: If the index can't be written.
        """
        own = self.directory / f"left-out-{self.partition}.json"
        if self._skipped_ids:
            write_whole(own, json.dumps(self._skipped_ids).encode())
        else:
            own.unlink(missing_ok=True)
        places = [
            (path.name, row, entry)
            for path in shards_of(self.directory)
            for row, entry in enumerate(read_entries(path))
        ]
        present = {entry.id for _, _, entry in places}
        skipped = {
            id_
            for path in self.directory.glob("left-out-*.json")
            for id_ in json.loads(path.read_text())
        }
        remaining = len(self._expected - present - skipped)
        if not remaining:
            SplitIndex(places, sorted(skipped - present)).write(self.directory)
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

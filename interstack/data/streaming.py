"""Speech streamed from shards: a single pass, or endless epochs in which each reader has a part."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Utterance, read_header
from interstack.data.base import Delivery, Feed, FeedSettings, SpeechSource, Split, check_rate
from interstack.data.bucketing import plan_batches
from interstack.data.dataset import BatchAssembler, BatchDataset
from interstack.data.skips import Tolerance
from interstack.errors import ConfigurationError, DataError

_WINDOW = 32
"""Batches' worth of encoded utterances that a reader holds and batches at a time. More would pad
less and mix more; these cost some 2 MB a minute of audio."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A part of a stream that is read front to back. Picklable, for spawned workers.

    Attributes:
        name: Its name in messages.
        read: Opens it: yields utterance ids and encoded audio.
        unique_ids: How to give its utterances ids that are unique.
    """

    name: str
    read: Callable[[], Iterator[tuple[str, bytes]]]
    unique_ids: str


def read_once(shards: Sequence[Shard], settings: FeedSettings) -> Iterator[Utterance]:
    """Yield the usable utterances of all shards, in order.

    Raises:
        DataError: If a shard can't be read, two utterances have the same id, or audio is corrupt
            (unless that is to be skipped) or not at 16 kHz.
    """
    tolerance = settings.tolerance()
    shard_of: dict[str, str] = {}
    for shard in shards:
        for id_, audio in shard.read():
            if id_ in shard_of:  # outputs and targets are kept by ids: one would replace the other
                both = (
                    f"{shard.name} holds the utterance {id_} twice"
                    if shard_of[id_] == shard.name
                    else f"{shard_of[id_]} and {shard.name} both hold an utterance {id_}"
                )
                raise DataError(f"{both}: {shard.unique_ids}")
            shard_of[id_] = shard.name
            utterance = _admit(id_, audio, settings, tolerance)
            if utterance is not None:
                yield utterance


def read_part(
    shards: Sequence[Shard],
    settings: FeedSettings,
    epoch: int,
    reader: int,
    num_readers: int,
) -> Iterator[Utterance | None]:
    """Yield one reader's utterances without end, in an order that seed and epoch decide.

    All readers shuffle the shards alike and take turns in choosing. Where there are more readers
    than shards, those of one shard take turns with its utterances. After all of its part, and a
    None to mark that, a reader continues with its part of another shuffle.

    Raises:
        DataError: See `read_once`; or if nothing in the part is usable.
    """
    tolerance = settings.tolerance()
    for pass_ in count():
        random = np.random.default_rng((settings.seed, epoch, pass_))
        found = False
        for shard, part, parts in _parts(random.permutation(len(shards)), reader, num_readers):
            for index, (id_, audio) in enumerate(shards[shard].read()):
                if index % parts != part:
                    continue
                utterance = _admit(id_, audio, settings, tolerance)
                if utterance is not None:
                    found = True
                    yield utterance
        if not found:
            raise DataError(
                f"reader {reader} of {num_readers} finds no usable utterance in its part of "
                f"{len(shards)} shards: lower data.num_workers or trainer.devices, or pack more "
                "shards"
            )
        yield None


def _parts(
    order: np.ndarray[tuple[int], np.dtype[np.int64]], reader: int, num_readers: int
) -> list[tuple[int, int, int]]:
    """Return a reader's shards, each as shard, which part of it, of how many parts."""
    if len(order) >= num_readers:
        return [(int(shard), 0, 1) for shard in order[reader::num_readers]]
    position = reader % len(order)
    parts = len(range(position, num_readers, len(order)))
    return [(int(order[position]), reader // len(order), parts)]


def _admit(
    id_: str, audio: bytes, settings: FeedSettings, tolerance: Tolerance
) -> Utterance | None:
    """Return an utterance, or None if it is too short, or corrupt and to be skipped."""
    try:
        utterance = read_header(id_, audio, id_)
    except DataError as error:
        tolerance.failed(error)
        return None
    tolerance.passed()
    check_rate(utterance, settings.resample)
    if utterance.num_samples < settings.min_samples:
        settings.skips.count_too_short()
        return None
    return utterance


class StreamDataset(IterableDataset[Delivery]):
    """One rank's batches of an epoch, or of a single pass.

    Not lhotse's `DynamicBucketingSampler`, though it batches streams too: an epoch here has a known
    number of batches, their order is a pure function of seed, epoch, rank and number of workers,
    and batches before `first_batch` are skipped without decoding them.

    Worker w of a rank makes its batches w, w + workers, …, in which order torch collects them.

    Args:
        shards: Openers of the shards.
        settings: How utterances become batches.
        epoch: Epoch of training; None for a single pass, which is alike on all ranks.
        rank: This process' rank.
        world_size: Number of ranks.
        first_batch: Batches of the epoch to skip.
        keep_order: Single pass: leave the utterances as they come; otherwise longest first within
            a window.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        settings: FeedSettings,
        *,
        epoch: int | None,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
        keep_order: bool = False,
    ) -> None:
        super().__init__()
        self.shards = shards
        self.settings = settings
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.first_batch = first_batch
        self.keep_order = keep_order
        self._assemble = BatchAssembler(settings, epoch)

    def __len__(self) -> int:
        if self.epoch is None or self.settings.epoch_batches is None:
            raise TypeError("a single pass over a stream has no known length")
        return max(0, self.settings.epoch_batches - self.first_batch)

    def __iter__(self) -> Iterator[Delivery]:
        """Yield this worker's batches; an error is yielded too, for the loader to raise."""
        skips = self.settings.skips
        skips.take()  # what was counted before, by others, is no part of these batches
        try:
            done, end, batches = self._own_batches()
            for number, (window, index) in enumerate(islice(batches, end)):
                if number < done:
                    skips.take()  # counted when these batches were first loaded
                else:
                    yield Delivery(window.batch(index), skips.take())
        except DataError as error:
            yield Delivery(error, skips.take())

    def _own_batches(self) -> tuple[int, int | None, Iterator[tuple[BatchDataset, int]]]:
        """Return how many of its batches this worker skips, where it ends, and all of them."""
        if self.epoch is None:
            return 0, None, self._windows(read_once(self.shards, self.settings), (0,))
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # Torch asks worker 0 first, who therefore takes the part of whoever is next.
        worker = (worker + self.first_batch) % workers
        reader, readers = self.rank * workers + worker, self.world_size * workers
        stream = read_part(self.shards, self.settings, self.epoch, reader, readers)
        batches = self._windows(stream, (self.settings.seed, self.epoch, reader))
        done = len(range(worker, self.first_batch, workers))
        end = len(range(worker, self.settings.epoch_batches or 0, workers))
        return done, end, batches

    def _windows(
        self, stream: Iterator[Utterance | None], key: tuple[int, ...]
    ) -> Iterator[tuple[BatchDataset, int]]:
        """Yield undecoded batches, each as a window of them and its index there.

        The next window is read little by little while this one's batches are used, so that the
        model never waits for a whole window. A window ends where all of the reader's part has been
        read, so that none holds an utterance twice.
        """
        budget = self.settings.batch_samples
        window, _ = self._take(stream, _WINDOW * budget)
        for number in count():
            if not window:
                return
            batches = self._batches(window, (*key, number))
            dataset = BatchDataset(batches, self._assemble)
            window, missing = [], _WINDOW * budget
            for index in range(len(batches)):
                yield dataset, index
                taken, at_end = self._take(stream, min(budget, missing))
                window += taken
                missing = 0 if at_end else missing - sum(map(self._length, taken))
            if not window:
                window, _ = self._take(stream, _WINDOW * budget)

    def _batches(self, window: list[Utterance], key: tuple[int, ...]) -> list[list[Utterance]]:
        """Divide a window into batches, shuffled in training."""
        settings = self.settings
        lengths = [self._length(utterance) for utterance in window]
        if self.epoch is None:
            plan = plan_batches(lengths, settings.batch_samples, keep_order=self.keep_order)
            order = plan.batches() if self.keep_order else plan.batches()[::-1]
        else:
            plan = plan_batches(lengths, settings.batch_samples, settings.num_buckets)
            order = plan.shuffled(key)[0]
        return [[window[index] for index in batch] for batch in order]

    def _take(
        self, stream: Iterator[Utterance | None], num_samples: int
    ) -> tuple[list[Utterance], bool]:
        """Take utterances until they last `num_samples` or the part ends, and return which."""
        taken: list[Utterance] = []
        while num_samples > 0:
            utterance = next(stream, None)
            if utterance is None:
                return taken, True
            taken.append(utterance)
            length = self._length(utterance)
            if self.epoch is None and length < utterance.num_samples:
                self.settings.skips.count_cropped(utterance.name, utterance.num_samples, length)
            num_samples -= length
        return taken, False

    def _length(self, utterance: Utterance) -> int:
        """Return an utterance's samples after cropping."""
        return self._assemble.decode.crop(utterance)[1]


class StreamSource(SpeechSource):
    """A corpus in shards, on disk or far away."""

    @abstractmethod
    def shards(self, split: Split) -> Sequence[Shard]:
        """List a split's shards in a fixed order.

        Raises:
            DataError: If the split is missing, empty or out of reach.
        """

    def open(self, split: Split, settings: FeedSettings) -> StreamFeed:
        """List the split's shards and try the first utterance; see `SpeechSource.open`."""
        if split == "train" and settings.epoch_batches is None:
            raise ConfigurationError(
                "data.epoch_batches is null, but a stream has no end of its own: set it to the "
                "batches that make an epoch on each rank"
            )
        longest = settings.batch_samples if settings.whole else settings.max_samples
        if longest is None:
            raise ConfigurationError(
                "data.max_seconds is null, but a stream's longest utterance is not known "
                "beforehand: set data.max_seconds to at most the "
                f"{settings.batch_samples / SAMPLE_RATE:g} s of {settings.budget_name}"
            )
        settings.check_fits("an utterance of data.max_seconds", longest)
        shards = self.shards(split)
        first = next(read_once(shards, settings), None)
        if first is None:
            raise DataError(
                f"the {len(shards)} shards of {split} hold no usable utterance: pack others"
            )
        if first.num_channels > 1:
            _log.warning("%s has several channels, which are averaged", first.name)
        return StreamFeed(shards, settings, longest)


class StreamFeed(Feed):
    """Batches of a stream.

    Args:
        shards: Openers of the shards.
        settings: How utterances become batches.
        longest_samples: Longest waveform after cropping; of whole utterances, the most that is
            computed at a time.
    """

    max_evaluation_workers = 1  # a single pass in one order needs one reader
    order_depends_on_workers = True  # each reads a part of its own

    def __init__(
        self, shards: Sequence[Shard], settings: FeedSettings, longest_samples: int
    ) -> None:
        self.shards = shards
        self.settings = settings
        self._longest_samples = longest_samples

    def utterances_once(self) -> Iterator[Utterance]:
        """Read all shards through, in order."""
        return read_once(self.shards, self.settings)

    @property
    def longest_samples(self) -> int:
        """The longest crop: how long the utterances are shows only in reading them."""
        return self._longest_samples

    @property
    def counts(self) -> dict[str, float]:
        """The number of shards."""
        return {"shards": len(self.shards)}

    def num_training_batches(self, world_size: int) -> int:
        """Return the settings' `epoch_batches`, whatever the number of ranks."""
        del world_size
        assert self.settings.epoch_batches is not None  # checked when the split was opened
        return self.settings.epoch_batches

    def training(
        self, epoch: int, rank: int, world_size: int, first_batch: int = 0
    ) -> StreamDataset:
        """Return `epoch_batches` batches from this rank's part of the shards."""
        return StreamDataset(
            self.shards,
            self.settings,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            first_batch=first_batch,
        )

    def evaluation(self, rank: int, world_size: int, keep_order: bool = False) -> StreamDataset:
        """Return the whole split on every rank.

        How many batches a rank's part would make shows only in reading it, and ranks that differ in
        that wait for each other for ever. Equal results on all ranks average to the same.
        """
        settings = replace(self.settings, targets=None) if keep_order else self.settings
        return StreamDataset(
            self.shards,
            settings,
            epoch=None,
            rank=rank,
            world_size=world_size,
            keep_order=keep_order,
        )

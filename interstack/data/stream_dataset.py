"""Batches of a stream, as an iterable torch dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

from torch.utils.data import IterableDataset, get_worker_info

from interstack.data.assembling import BatchAssembler, BatchDataset
from interstack.data.batching import plan_batches
from interstack.data.feed import Delivery, FeedSettings
from interstack.data.stream_reading import Shard, read_once, read_share
from interstack.data.utterance import Utterance
from interstack.errors import DataError

_WINDOW = 32
"""Batches' worth of encoded utterances that a reader holds and batches at a time. More would pad
less and mix more; these cost some 2 MB a minute of audio."""


class StreamDataset(IterableDataset[Delivery]):
    """One rank's batches of an epoch, or of a single pass.

    Not lhotse's `DynamicBucketingSampler`, though it batches streams too: an epoch here has a known
    number of batches, their order is a pure function of seed, epoch, rank and number of workers,
    and batches before `first_batch` are passed over without decoding them.

    Worker w of a rank makes its batches w, w + workers, …, in which order torch collects them.

    Args:
        shards: openers of the shards.
        settings: how utterances become batches.
        epoch: epoch of training; None for a single pass, which is alike on all ranks.
        rank: this process' rank.
        world_size: number of ranks.
        first_batch: batches of the epoch to pass over.
        keep_order: single pass: leave the utterances as they come; otherwise longest first within
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
        """Yields this worker's batches; an error is yielded too, for the loader to raise."""
        left_out = self.settings.left_out
        left_out.take()  # what was counted before, by others, is no part of these batches
        try:
            done, end, batches = self._share()
            for number, (window, index) in enumerate(islice(batches, end)):
                if number < done:
                    left_out.take()  # counted before, when these batches were handed out
                else:
                    yield Delivery(window.batch(index), left_out.take())
        except DataError as error:
            yield Delivery(error, left_out.take())

    def _share(self) -> tuple[int, int | None, Iterator[tuple[BatchDataset, int]]]:
        """Returns which of its batches this worker has to pass over and to end before, and all."""
        if self.epoch is None:
            return 0, None, self._windows(read_once(self.shards, self.settings), (0,))
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # Torch asks worker 0 first, who therefore takes the part of whoever is next.
        worker = (worker + self.first_batch) % workers
        reader, readers = self.rank * workers + worker, self.world_size * workers
        stream = read_share(self.shards, self.settings, self.epoch, reader, readers)
        batches = self._windows(stream, (self.settings.seed, self.epoch, reader))
        done = len(range(worker, self.first_batch, workers))
        end = len(range(worker, self.settings.epoch_batches or 0, workers))
        return done, end, batches

    def _windows(
        self, stream: Iterator[Utterance | None], key: tuple[int, ...]
    ) -> Iterator[tuple[BatchDataset, int]]:
        """Yields undecoded batches, each as a window of them and its place there.

        The next window is read little by little while this one's batches are handed out, so that
        the model never waits for a whole window. A window ends where all of the reader's share has
        been read, so that none holds an utterance twice.
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
        """Divides a window into batches, shuffled in training."""
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
        """Takes utterances until they last `num_samples` or the share ends, and says which."""
        taken: list[Utterance] = []
        while num_samples > 0:
            utterance = next(stream, None)
            if utterance is None:
                return taken, True
            taken.append(utterance)
            length = self._length(utterance)
            if self.epoch is None and length < utterance.num_samples:
                self.settings.left_out.count_cropped(utterance.name, utterance.num_samples, length)
            num_samples -= length
        return taken, False

    def _length(self, utterance: Utterance) -> int:
        """Returns an utterance's samples after cropping."""
        return self._assemble.decode.crop(utterance)[1]

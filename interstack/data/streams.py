"""Corpora that are read shard by shard, front to back, and never known as a whole."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

from interstack.constants import SAMPLE_RATE
from interstack.data.feed import Feed, FeedSettings
from interstack.data.source import SpeechSource, Split
from interstack.data.stream_dataset import StreamDataset
from interstack.data.stream_reading import Shard, read_once
from interstack.data.utterance import Utterance
from interstack.errors import ConfigurationError, DataError

_log = logging.getLogger(__name__)


class StreamSource(SpeechSource):
    """A corpus in shards, on disk or far away."""

    @abstractmethod
    def shards(self, split: Split) -> Sequence[Shard]:
        """Lists a split's shards in a fixed order.

        Raises:
            DataError: the split is missing, empty or out of reach.
        """

    def open(self, split: Split, settings: FeedSettings) -> StreamFeed:
        """Lists the split's shards and tries the first utterance; see `SpeechSource.open`."""
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
            raise DataError(f"The {len(shards)} shards of {split} hold no usable utterance.")
        if first.num_channels > 1:
            _log.warning("%s has several channels; these are averaged.", first.name)
        return StreamFeed(shards, settings, longest)


class StreamFeed(Feed):
    """Batches of a stream.

    Args:
        shards: openers of the shards.
        settings: how utterances become batches.
        longest_samples: longest waveform after cropping; of whole utterances, the most that is
            computed at a time.
    """

    max_evaluation_workers = 1  # a single pass in one order needs one reader
    order_depends_on_workers = True  # each reads a share of its own

    def __init__(
        self, shards: Sequence[Shard], settings: FeedSettings, longest_samples: int
    ) -> None:
        self.shards = shards
        self.settings = settings
        self._longest_samples = longest_samples

    def utterances_once(self) -> Iterator[Utterance]:
        """Reads all shards through, in order."""
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
        """Returns the settings' `epoch_batches`, whatever the number of ranks."""
        del world_size
        assert self.settings.epoch_batches is not None  # checked when the split was opened
        return self.settings.epoch_batches

    def training(
        self, epoch: int, rank: int, world_size: int, first_batch: int = 0
    ) -> StreamDataset:
        """Returns `epoch_batches` batches from this rank's share of the shards."""
        return StreamDataset(
            self.shards,
            self.settings,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            first_batch=first_batch,
        )

    def evaluation(self, rank: int, world_size: int, keep_order: bool = False) -> StreamDataset:
        """Returns the whole split on every rank.

        How many batches a share would make shows only in reading it, and ranks that differ in
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

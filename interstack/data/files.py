"""Corpora whose utterances are all known before training."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from interstack.constants import SAMPLE_RATE
from interstack.data.assembling import BatchAssembler, BatchDataset
from interstack.data.batching import BatchPlan, plan_batches
from interstack.data.feed import Feed, FeedSettings, check_rate
from interstack.data.source import SpeechSource, Split
from interstack.data.tolerance import OnCorrupt
from interstack.data.utterance import Utterance
from interstack.errors import DataError
from interstack.settings import check_effect

_log = logging.getLogger(__name__)


class FileSource(SpeechSource):
    """A corpus that lists its utterances and their lengths."""

    @abstractmethod
    def utterances(self, split: Split, on_corrupt: OnCorrupt) -> tuple[list[Utterance], list[str]]:
        """Returns the split's utterances in a fixed order, and the ids of corrupt ones left out.

        Raises:
            DataError: the split is missing or empty, or audio is corrupt and `on_corrupt` raises.
        """

    def checked_utterances(
        self, split: Split, on_corrupt: OnCorrupt
    ) -> tuple[list[Utterance], list[str]]:
        """Return the same, with ids that are unique.

        Raises:
            DataError: As `utterances`, or if two utterances have the same id.
        """
        found, corrupt = self.utterances(split, on_corrupt)
        check_unique_ids(found, split)
        return found, corrupt

    def open(self, split: Split, settings: FeedSettings) -> FileFeed:
        """Lists the split's utterances and keeps the usable ones; see `SpeechSource.open`."""
        where = f"with {type(self).__name__}, whose epoch is every utterance once"
        fix = "limit an epoch by trainer.limit_train_batches"
        check_effect("data.epoch_batches", settings.epoch_batches, None, where, fix)
        found, corrupt = self.checked_utterances(split, settings.on_corrupt)
        for utterance in found:
            check_rate(utterance, settings.resample)
        kept = [utterance for utterance in found if utterance.num_samples >= settings.min_samples]
        if not kept:
            raise DataError(
                f"All {len(found)} utterances of {split} are shorter than "
                f"{settings.min_samples / SAMPLE_RATE} s; lower data.min_seconds."
            )
        mixed = [utterance.name for utterance in kept if utterance.num_channels > 1]
        if mixed:
            _log.warning(
                "%d files of %s have several channels, which are averaged: %s%s",
                *(len(mixed), split, mixed[0], ", …" if len(mixed) > 1 else ""),
            )
        return FileFeed(kept, settings, too_short=len(found) - len(kept), corrupt=len(corrupt))


def check_unique_ids(utterances: Iterable[Utterance], split: Split) -> None:
    """Refuse utterances of a split that share an id: outputs and targets are kept by ids.

    Raises:
        DataError: With both names.
    """
    names: dict[str, str] = {}
    for utterance in utterances:
        if utterance.id in names:
            raise DataError(
                f"{names[utterance.id]} and {utterance.name} are both the utterance "
                f"{utterance.id} of {split}: rename or remove one of them"
            )
        names[utterance.id] = utterance.name


class FileFeed(Feed):
    """Batches of a list of utterances.

    Args:
        utterances: at least one.
        settings: how they become batches.
        too_short: utterances left out before, for the counts.
        corrupt: the same.

    Raises:
        ConfigurationError: an utterance exceeds the budget of a batch, unless it is to be whole.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        settings: FeedSettings,
        too_short: int = 0,
        corrupt: int = 0,
    ) -> None:
        self.utterances = utterances
        self.settings = settings
        training = settings.targets is not None and settings.targets.name == "train"
        crops = list(map(settings.decoder(0 if training else None).crop, utterances))
        self._lengths = [length for _, length in crops]
        self._counts: dict[str, float] = {
            "utterances": len(utterances),
            "seconds": sum(self._lengths) / SAMPLE_RATE,
            "too_short": too_short,
            "corrupt": corrupt,
        }
        longest = utterances[self._lengths.index(self.longest_samples)]
        settings.check_fits(longest.name, self.longest_samples)
        for utterance, crop in zip(utterances, crops, strict=True):
            self._check_targets(utterance, crop)

    def _check_targets(self, utterance: Utterance, crop: tuple[int, int]) -> None:
        """Holds an utterance to the cache now; one that it left out is met when it is its turn."""
        try:
            self.settings.check_targets(utterance, crop)
        except DataError:
            if self.settings.on_corrupt == "raise":
                raise

    def utterances_once(self) -> Sequence[Utterance]:
        """Returns the utterances, as listed."""
        return self.utterances

    @property
    def longest_samples(self) -> int:
        """The longest utterance, after cropping."""
        return max(self._lengths)

    @property
    def counts(self) -> dict[str, float]:
        """Usable utterances, their seconds after cropping, and how many were left out."""
        return self._counts

    def cropped(self, split: str) -> str | None:
        """Returns how much of the split an evaluation leaves out by cropping; None if nothing."""
        crop = self.settings.decoder(None).crop
        cropped = [each for each in self.utterances if crop(each)[1] < each.num_samples]
        if not cropped:
            return None
        lost = sum(each.num_samples - crop(each)[1] for each in cropped) / SAMPLE_RATE
        total = sum(each.num_samples for each in self.utterances) / SAMPLE_RATE
        longest = max(cropped, key=lambda each: each.num_samples)
        return (
            f"{len(cropped)} of {len(self.utterances)} utterances of {split} are cropped to "
            f"data.max_seconds, {crop(longest)[1] / SAMPLE_RATE:g} s, without {lost:.1f} of the "
            f"split's {total:.1f} s (the longest, {longest.name}, lasts "
            f"{longest.num_samples / SAMPLE_RATE:.1f} s): raise data.max_seconds to evaluate on "
            "all of it"
        )

    def num_training_batches(self, world_size: int) -> int:
        """Returns the batches that each of so many ranks gets, the same in every epoch."""
        return len(self._training_plan(world_size)) // world_size

    def mean_batch_samples(self, world_size: int) -> float:
        """Returns the mean padded size of an epoch's batches."""
        lengths = np.asarray(self._lengths)
        slots = world_size * self.settings.micro_batches
        shares = self._training_plan(world_size).shuffled((self.settings.seed, 0), slots)
        sizes = [len(batch) * lengths[batch].max() for share in shares for batch in share]
        return float(np.mean(sizes))

    def training(
        self, epoch: int, rank: int, world_size: int, first_batch: int = 0
    ) -> BatchDataset:
        """Returns one rank's batches of an epoch; together the ranks' hold every utterance once.

        A step's batches of all ranks depend on their number, ranks × micro-batches, alone.
        """
        key, micro_batches = (self.settings.seed, epoch), self.settings.micro_batches
        slots = self._training_plan(world_size).shuffled(key, world_size * micro_batches)
        share = [batch for step in zip(*slots[rank::world_size], strict=True) for batch in step]
        assemble = BatchAssembler(self.settings, epoch)
        return BatchDataset(self._utterances(share), assemble, first_batch)

    def evaluation(self, rank: int, world_size: int, keep_order: bool = False) -> BatchDataset:
        """Returns one rank's batches of a single pass: as listed, or longest first.

        Longest first because what does not fit into memory then fails at once.
        """
        plan = plan_batches(
            self._lengths,
            self.settings.batch_samples,
            world_size=world_size,
            keep_order=keep_order,
            budget_option=self.settings.budget_name,
        )
        batches = plan.batches() if keep_order else plan.batches()[::-1]
        # what is to be predicted is the student's alone
        settings = replace(self.settings, targets=None) if keep_order else self.settings
        return BatchDataset(
            self._utterances(batches[rank::world_size]), BatchAssembler(settings, None)
        )

    def _training_plan(self, world_size: int) -> BatchPlan:
        settings = self.settings
        return plan_batches(
            self._lengths,
            settings.batch_samples,
            settings.num_buckets,
            world_size=world_size,
            micro_batches=settings.micro_batches,
        )

    def _utterances(self, batches: Sequence[NDArray[np.int64]]) -> list[list[Utterance]]:
        return [[self.utterances[index] for index in batch] for batch in batches]

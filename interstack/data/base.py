"""Where speech comes from: the interface between a corpus and the data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from torch.utils.data import Dataset

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import CropPlace, Decoder, Utterance
from interstack.data.batch import Batch, StoredTargets
from interstack.data.global_batch import BatchSplit
from interstack.data.skips import OnCorrupt, SkipCounter, Skips, Tolerance
from interstack.errors import ConfigurationError, DataError

Split: TypeAlias = Literal["train", "validation", "test"]


class SpeechSource(ABC):
    """A corpus with a train, a validation and a test split."""

    section: str = "data.source"
    """What its options' names begin with in the command at hand, for messages."""
    corrupt_option: str = "data.on_corrupt"
    """The option that lets corrupt audio be skipped, for messages."""
    root_option: str | None = None
    """The option that names the corpus, for messages; None: the section's ``root``."""

    def prepare(self, splits: Sequence[Split] = ("train", "validation", "test")) -> None:
        """Fetch what is missing of some splits; called in one process a machine, before `open`.

        Args:
            splits: The splits.
        """
        del splits

    @abstractmethod
    def open(self, split: Split, settings: FeedSettings) -> Feed:
        """Find and check a split, before any training.

        Raises:
            ConfigurationError: If a setting does not suit this source or this split.
            DataError: If the split is missing, empty or out of reach, or its audio unusable.
        """


class Delivery(NamedTuple):
    """What a dataset yields, in this process or from a worker, for the loader to unpack.

    Attributes:
        batch: The batch, or the error that prevents it: an exception that a worker raises would
            arrive with the worker's traceback pasted into its message. None where all of a
            prediction's batch was skipped.
        skips: What was skipped in it, or on the way to it.
    """

    batch: Batch | DataError | None
    skips: Skips


class CachedTargets(Protocol):
    """The teacher's targets of one split, from ``interstack.target_cache``.

    Attributes:
        name: ``train``, ``validation`` or ``test``.
    """

    name: str

    @property
    def replaces_audio(self) -> bool:
        """Whether a batch needs no waveforms."""

    def check(self, id_: str, num_samples: int, crop: tuple[int, int]) -> None:
        """Refuse an utterance other than the one that the cache was computed from.

        Raises:
            DataError: If the cache lacks it, since its audio could not be read.
            ConfigurationError: If the cache lacks it otherwise, or knows another one.
        """

    def check_audio(self, id_: str, checksum: int) -> None:
        """Refuse decoded audio other than the teacher's input, by the CRC-32 of its samples.

        Raises:
            DataError: If it is other audio.
        """

    def collate(self, ids: Sequence[str]) -> StoredTargets:
        """Return what is stored of some utterances as a batch."""


@dataclass(frozen=True)
class FeedSettings:
    """How a split becomes batches; see `SpeechDataModule` for what each means.

    Attributes:
        batch_samples: Budget of one rank's batch, padding included.
        budget_name: The setting that the budget comes from.
        max_samples: Longest waveform; longer ones are cropped.
        min_samples: Shorter utterances are skipped.
        num_buckets: Most buckets of similar lengths.
        seed: Seed of order and crops.
        on_corrupt: What to do with audio that can't be decoded.
        resample: Whether other rates than 16 kHz are allowed.
        epoch_batches: Batches a rank in an epoch of a stream, each micro-batch counted.
        skips: Counts the utterances skipped in this process.
        crop: Where training crops what is too long.
        targets: The teacher's, from a cache; None: the model computes them.
        whole: Nothing is cropped; an utterance longer than a batch is a batch of its own, of which
            the model computes a batch's samples at a time.
        split: How a global batch of training is divided; None: each rank has a budget of its own.
    """

    batch_samples: int
    max_samples: int | None
    min_samples: int
    num_buckets: int
    seed: int
    on_corrupt: OnCorrupt
    resample: bool
    epoch_batches: int | None
    skips: SkipCounter
    crop: CropPlace = "random"
    targets: CachedTargets | None = None
    whole: bool = False
    budget_name: str = "data.batch_seconds"
    split: BatchSplit | None = None

    @property
    def micro_batches(self) -> int:
        """Batches of a rank that are drawn together, for one optimizer step."""
        return 1 if self.split is None else self.split.micro_batches

    def check_fits(self, name: str, num_samples: int) -> None:
        """Refuse an utterance that exceeds the budget of a batch.

        Args:
            name: The utterance's.
            num_samples: Its length after cropping.

        Raises:
            ConfigurationError: With the settings to change.
        """
        if self.whole or num_samples <= self.batch_samples:
            return
        seconds = num_samples / SAMPLE_RATE
        if self.split is not None:
            raise ConfigurationError(self.split.fault(name, seconds))
        raise ConfigurationError(
            f"{self.budget_name} is {self.batch_samples / SAMPLE_RATE:.4g}, but {name} takes "
            f"{seconds:.4g} s: raise {self.budget_name} or lower data.max_seconds"
        )

    def decoder(self, epoch: int | None) -> Decoder:
        """Return the decoder of an epoch of training, or of evaluation (None)."""
        return Decoder(None if self.whole else self.max_samples, epoch, self.seed, self.crop)

    def check_targets(self, utterance: Utterance, crop: tuple[int, int]) -> None:
        """Refuse an utterance that differs from the cache of targets, if there is one.

        Args:
            utterance: The utterance.
            crop: First sample and length of the student's input.

        Raises:
            ConfigurationError: If the cache is of another corpus, or crops move.
            DataError: If its audio could not be read when the cache was made.
        """
        if self.targets is None:
            return
        if self.targets.name == "train":
            self.check_fixed_crop(utterance, crop[1])
        self.targets.check(utterance.id, utterance.num_samples, crop)

    def check_fixed_crop(self, utterance: Utterance, length: int) -> None:
        """Refuse a crop of training that moves, for which a cache can't hold targets.

        Args:
            utterance: The utterance.
            length: Samples of its crop.

        Raises:
            ConfigurationError: If it is shorter than the utterance and ``data.crop`` is random.
        """
        if self.crop == "random" and length < utterance.num_samples:
            raise ConfigurationError(
                f"data.crop is random, but {utterance.name} is cropped to "
                f"{length / SAMPLE_RATE:g} s, and a cache can't hold targets of crops that move: "
                "give data.crop fixed, to cache and to fit"
            )

    def tolerance(self) -> Tolerance:
        """Return a new count of audio that can't be read."""
        return Tolerance(self.on_corrupt, self.skips)


def check_rate(utterance: Utterance, resample: bool, option: str = "data.resample") -> None:
    """Refuse rates other than 16 kHz unless resampling is allowed.

    Args:
        utterance: The utterance.
        resample: Whether it is allowed.
        option: The option that allows it, by its name in the command at hand.

    Raises:
        DataError: If the utterance is at another rate.
    """
    if utterance.sample_rate != SAMPLE_RATE and not resample:
        raise DataError(
            f"{utterance.name} is sampled at {utterance.sample_rate} Hz, not {SAMPLE_RATE}: set "
            f"{option} to true, or resample the corpus once and for all"
        )


class Feed(ABC):
    """The batches of one split."""

    settings: FeedSettings
    """How its utterances become batches."""

    max_evaluation_workers: int | None = None
    """Most workers that may load `evaluation`; None is any number."""

    order_depends_on_workers: bool = False
    """Whether another number of workers makes other batches of an epoch."""

    @abstractmethod
    def utterances_once(self) -> Iterable[Utterance]:
        """Return every usable utterance once, in the corpus' order."""

    @property
    @abstractmethod
    def longest_samples(self) -> int:
        """The longest waveform a batch can hold, after cropping."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, float]:
        """What is known of the split beforehand: utterances, seconds, how many were skipped."""

    @abstractmethod
    def num_training_batches(self, world_size: int) -> int:
        """Return the batches that each of so many ranks gets in an epoch.

        Raises:
            DataError: If the utterances are too few for the ranks.
        """

    def cropped(self, split: str) -> str | None:
        """Return how much of the split an evaluation crops, as a sentence for the log.

        None if nothing, or if that is not known beforehand: then it is counted while loading.

        Args:
            split: What to call it.
        """
        del split
        return None

    def mean_batch_samples(self, world_size: int) -> float | None:
        """Return the mean padded size of an epoch's batches; None if that is not known beforehand.

        Raises:
            DataError: If the utterances are too few for the ranks.
        """
        del world_size
        return None

    @abstractmethod
    def training(
        self, epoch: int, rank: int, world_size: int, first_batch: int = 0
    ) -> Dataset[Delivery]:
        """Return one rank's batches of an epoch from `first_batch` on, shuffled and sized.

        Every rank has the same number. All are a function of the arguments and the seed (and, for
        streams, of the number of workers).
        """

    @abstractmethod
    def evaluation(self, rank: int, world_size: int, keep_order: bool = False) -> Dataset[Delivery]:
        """Return one rank's batches of a single pass, in the corpus' order or by length."""

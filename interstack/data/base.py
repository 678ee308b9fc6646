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
from interstack.data.skips import LeftOut, LeftOutHere, OnCorrupt, Tolerance
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
        """Fetches what is missing of some splits. Called in one process a machine, before `open`.

        Args:
            splits: the splits.
        """
        del splits

    @abstractmethod
    def open(self, split: Split, settings: FeedSettings) -> Feed:
        """Finds and checks a split, before any training.

        Raises:
            ConfigurationError: a setting does not suit this source or this split.
            DataError: the split is missing, empty or out of reach, or its audio unusable.
        """


class Delivery(NamedTuple):
    """What a dataset hands over, in this process or from a worker, for the loader to unpack.

    Attributes:
        batch: the batch, or the error that prevents it: an exception that a worker raises would
            arrive with the worker's traceback pasted into its message. None where all of a
            prediction's batch was left out.
        left_out: what was left out of it, or found and passed over on the way to it.
    """

    batch: Batch | DataError | None
    left_out: LeftOut


class CachedTargets(Protocol):
    """The teacher's targets of one split, stored; ``interstack.target_cache`` has them.

    Attributes:
        name: ``train``, ``validation`` or ``test``.
    """

    name: str

    @property
    def replaces_audio(self) -> bool:
        """Whether a batch needs no waveforms."""

    def check(self, id_: str, num_samples: int, crop: tuple[int, int]) -> None:
        """Hold an utterance of a run to what the cache was computed from.

        Raises:
            DataError: If the cache lacks it, since its audio could not be read.
            ConfigurationError: If the cache lacks it otherwise, or knows another one.
        """

    def check_audio(self, id_: str, checksum: int) -> None:
        """Hold decoded audio, by the CRC-32 of its samples, to what the teacher heard.

        Raises:
            DataError: If it is other audio.
        """

    def collate(self, ids: Sequence[str]) -> StoredTargets:
        """Return what is stored of some utterances as a batch."""


@dataclass(frozen=True)
class FeedSettings:
    """How a split becomes batches; see `SpeechDataModule` for what each means.

    Attributes:
        batch_samples: budget of one rank's batch, padding included.
        budget_name: the setting that the budget comes from.
        max_samples: longest waveform; longer ones are cropped.
        min_samples: shorter utterances are left out.
        num_buckets: most buckets of alike lengths.
        seed: seed of order and crops.
        on_corrupt: what to do with audio that can't be decoded.
        resample: whether other rates than 16 kHz are allowed.
        epoch_batches: batches a rank in an epoch of a stream, each micro-batch counted.
        left_out: counts the utterances left out in this process.
        crop: where training crops what is too long.
        targets: the teacher's, from a cache; None: they are the model's to compute.
        whole: nothing is cropped; an utterance longer than a batch is a batch of its own, of which
             the model computes a batch's samples at a time.
        split: how a global batch of training is divided; None: each rank has a budget of its own.
    """

    batch_samples: int
    max_samples: int | None
    min_samples: int
    num_buckets: int
    seed: int
    on_corrupt: OnCorrupt
    resample: bool
    epoch_batches: int | None
    left_out: LeftOutHere
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
        """Returns what decodes and crops in an epoch of training, or in evaluation (None)."""
        return Decoder(None if self.whole else self.max_samples, epoch, self.seed, self.crop)

    def check_targets(self, utterance: Utterance, crop: tuple[int, int]) -> None:
        """Holds an utterance to the cache of targets, if there is one.

        Args:
            utterance: the utterance.
            crop: first sample and length of what the student will hear of it.

        Raises:
            ConfigurationError: the cache is of another corpus, or crops move.
            DataError: its audio could not be read when the cache was made.
        """
        if self.targets is None:
            return
        moves = self.crop == "random" and self.targets.name == "train"
        if moves and crop[1] < utterance.num_samples:
            raise ConfigurationError(
                f"{utterance.name} is cropped to {crop[1] / SAMPLE_RATE:g} s, at another place "
                "each epoch, for which a cache can't hold targets: give data.crop fixed"
            )
        self.targets.check(utterance.id, utterance.num_samples, crop)

    def tolerance(self) -> Tolerance:
        """Returns a fresh judge of audio that can't be read."""
        return Tolerance(self.on_corrupt, self.left_out)


def check_rate(utterance: Utterance, resample: bool, option: str = "data.resample") -> None:
    """Refuses rates other than 16 kHz unless resampling is allowed.

    Args:
        utterance: the utterance.
        resample: whether it is allowed.
        option: the option that allows it, by its name in the command at hand.

    Raises:
        DataError: the utterance is at another rate.
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
        """Returns every usable utterance once, in the corpus' order."""

    @property
    @abstractmethod
    def longest_samples(self) -> int:
        """The longest waveform a batch can hold, after cropping."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, float]:
        """What is known of the split beforehand: utterances, seconds, how many were left out."""

    @abstractmethod
    def num_training_batches(self, world_size: int) -> int:
        """Returns the batches that each of so many ranks gets in an epoch.

        Raises:
            DataError: the utterances are too few for the ranks.
        """

    def cropped(self, split: str) -> str | None:
        """Returns how much of the split an evaluation crops, as a sentence for the log.

        None if nothing, or if nobody knows beforehand: then it is counted while loading.

        Args:
            split: what to call it.
        """
        del split
        return None

    def mean_batch_samples(self, world_size: int) -> float | None:
        """Returns the mean padded size of an epoch's batches; None if nobody knows beforehand.

        Raises:
            DataError: the utterances are too few for the ranks.
        """
        del world_size
        return None

    @abstractmethod
    def training(
        self, epoch: int, rank: int, world_size: int, first_batch: int = 0
    ) -> Dataset[Delivery]:
        """Returns one rank's batches of an epoch from `first_batch` on, shuffled and sized.

        Every rank has the same number. All are a function of the arguments and the seed (and, for
        streams, of the number of workers).
        """

    @abstractmethod
    def evaluation(self, rank: int, world_size: int, keep_order: bool = False) -> Dataset[Delivery]:
        """Returns one rank's batches of a single pass, in the corpus' order or by length."""

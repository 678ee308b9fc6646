"""The LightningDataModule: any speech source as duration-bucketed, padded batches."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import lightning as L

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import CropPlace, Utterance
from interstack.data.base import Feed, FeedSettings, SpeechSource, Split
from interstack.data.global_batch import BatchSplit, set_up_accumulation, split_global_batch
from interstack.data.loader import SpeechLoader, TrainingLoader
from interstack.data.skips import OnCorrupt, SkipCounter, SkipTotals
from interstack.errors import ConfigurationError
from interstack.settings import check_effect

if TYPE_CHECKING:
    from interstack.target_cache.reader import TargetCache

_log = logging.getLogger(__name__)

FeedName: TypeAlias = Split | Literal["predict"]
"""What a feed is for: prediction reads the test split too, but whole."""

_FEEDS: dict[str, tuple[FeedName, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


class SpeechDataModule(L.LightningDataModule):
    """Batches of speech for training, validation, test and prediction.

    Each epoch has its own order of batches, so that the trainer needs a new loader every epoch:
    `reload_dataloaders_every_n_epochs: 1`. And the batches are split over ranks here:
    `use_distributed_sampler: false`.

    Args:
        source: Where the speech comes from.
        batch_seconds: Most seconds in one rank's batch, padding included (utterances × longest).
        validation_batch_seconds: The same for validation, test and prediction; null: as training.
            Prediction computes a longer utterance in windows of this length that overlap.
        max_seconds: Longer utterances are cropped, in training at a random place that seed, epoch
            and id decide, in validation and test from the start, which is logged. Null keeps all
            whole; prediction always does.
        min_seconds: Shorter utterances are skipped and counted.
        num_buckets: Buckets of similar lengths that batches are drawn from; a small corpus gets
            fewer.
        num_workers: Processes that decode audio; 0 decodes in the training process.
        seed: Seed of the order of batches and of the crops.
        on_corrupt: raise: stop at audio that can't be decoded, naming it; skip: skip and count it.
        resample: Resample audio of other rates to 16 kHz instead of refusing it.
        epoch_batches: Batches that make an epoch on each rank. Streams need it; a folder refuses
            it, since its epoch is every utterance once. With `global_batch_seconds` it counts
            global batches, which are optimizer steps.
        crop: random: training crops at another place each epoch; fixed: at one place for each
            utterance, whatever the seed, so that its targets can be cached. Needs max_seconds.
        target_cache: Directory of targets that the command `cache` has computed; the teacher is
            then never loaded. Null: it computes them in every step.
        global_batch_seconds: Seconds of all ranks in an optimizer step, padding included. They are
            shared out over the ranks, and over as many accumulated batches as `batch_seconds`, the
            most that one rank then holds at once, makes necessary; so any number of devices trains
            the same recipe. `trainer.limit_train_batches` and `trainer.val_check_interval` count
            global batches then, and `trainer.accumulate_grad_batches` is worked out. Null: every
            rank has a batch of `batch_seconds`, so more devices make a larger step.

    Raises:
        ConfigurationError: If a setting is out of range.
    """

    def __init__(
        self,
        source: SpeechSource,
        batch_seconds: float = 60.0,
        validation_batch_seconds: float | None = None,
        max_seconds: float | None = 16.0,
        min_seconds: float = 0.5,
        num_buckets: int = 30,
        num_workers: int = 2,
        seed: int = 0,
        on_corrupt: OnCorrupt = "raise",
        resample: bool = False,
        epoch_batches: int | None = None,
        crop: CropPlace = "random",
        target_cache: str | None = None,
        global_batch_seconds: float | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_seconds = batch_seconds
        self.validation_batch_seconds = (
            batch_seconds if validation_batch_seconds is None else validation_batch_seconds
        )
        self.max_seconds = max_seconds
        self.min_seconds = min_seconds
        self.num_buckets = num_buckets
        self.num_workers = num_workers
        self.seed = seed
        self.on_corrupt = on_corrupt
        self.resample = resample
        self.epoch_batches = epoch_batches
        self.crop: CropPlace = crop
        self.target_cache = target_cache
        self.global_batch_seconds = global_batch_seconds
        self.targets: TargetCache | None = None
        evaluates_alike = validation_batch_seconds is None
        self._evaluation_option = f"{'' if evaluates_alike else 'validation_'}batch_seconds"
        self.planned_world_size: int | None = None  # of a run that is not this process' trainer's
        self._set_up_for: L.Trainer | None = None
        self._check_settings()
        self._skips = SkipTotals()
        self._crops_reported: set[FeedName] = set()
        self._feeds: dict[FeedName, Feed] = {}

    def _check_settings(self) -> None:
        """Refuse settings out of range, by their names on the command line."""
        at_least: dict[str, tuple[float | None, float]] = {
            "min_seconds": (self.min_seconds, 0),
            "max_seconds": (self.max_seconds, max(self.min_seconds, 1 / SAMPLE_RATE)),
            "batch_seconds": (self.batch_seconds, 1 / SAMPLE_RATE),
            "global_batch_seconds": (self.global_batch_seconds, 1 / SAMPLE_RATE),
            "validation_batch_seconds": (self.validation_batch_seconds, 1 / SAMPLE_RATE),
            "num_buckets": (self.num_buckets, 1),
            "num_workers": (self.num_workers, 0),
            "seed": (self.seed, 0),
            "epoch_batches": (self.epoch_batches, 1),
        }
        for name, (value, least) in at_least.items():
            if value is not None and value < least:
                raise ConfigurationError(f"data.{name} is {value}; it must be at least {least:g}")
        if self.max_seconds is None:
            where = "with data.max_seconds null, where nothing is cropped"
            check_effect("data.crop", self.crop, "random", where, "give data.max_seconds")

    def prepare_data(self) -> None:
        """Download what the source is allowed to; Lightning calls it once a machine."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Find and check the splits that a stage needs; those found before are kept.

        Raises:
            DataError: If a split is missing or empty, or its audio corrupt, at another rate than
                16 kHz or too short.
            ConfigurationError: If an utterance is longer than a batch may be, or a setting does not
                suit the source.
        """
        if self.target_cache is not None and self.targets is None and stage != "predict":
            from interstack.target_cache.reader import TargetCache  # which knows data's batches

            self.targets = TargetCache(self.target_cache)
        targets = self.targets if stage != "predict" else None
        for name in _FEEDS[stage]:
            known = self._feeds.get(name)
            if known is None or (targets is not None and known.settings.targets is None):
                self._open(name, targets)
        if stage == "fit":
            self._set_up_accumulation()

    def _open(self, name: FeedName, targets: TargetCache | None = None) -> Feed:
        """Open the split that a feed reads."""
        split: Split = "test" if name == "predict" else name
        settings = self._settings(split)
        if name == "predict":
            settings = replace(settings, whole=True)
        elif targets is not None:
            settings = replace(settings, targets=targets.split(split))
        self._feeds[name] = self.source.open(split, settings)
        return self._feeds[name]

    def _set_up_accumulation(self) -> None:
        """Let the trainer accumulate a global batch; once, for it counts in other units then."""
        split = self.split
        if split is None or self.trainer is None or self._set_up_for is self.trainer:
            return
        batches = self.num_training_batches(split.world_size)
        set_up_accumulation(self.trainer, split, batches)
        self._set_up_for = self.trainer
        if self.planned_world_size is None and self.trainer.is_global_zero:
            _log.info("a step's audio: %s", split)

    @property
    def split(self) -> BatchSplit | None:
        """How a global batch is divided among the ranks; None without ``global_batch_seconds``."""
        if self.global_batch_seconds is None:
            return None
        world_size = self.planned_world_size or self._rank()[1]
        return split_global_batch(self.global_batch_seconds, self.batch_seconds, world_size)

    def teardown(self, stage: str) -> None:
        """Log what was skipped, if anything was."""
        del stage
        skipped = {
            name: int(count)
            for name, count in self.report().items()
            if count and name.rpartition("/")[2] in ("too_short", "corrupt", "skipped")
        }
        if skipped:
            counts = ", ".join(f"{name} {count}" for name, count in skipped.items())
            _log.info("utterances skipped: %s", counts)
        cropped = self._skips.total.cropped
        if cropped:
            _log.info("utterances cropped in validation and test: %d", cropped)

    def _settings(self, split: Split) -> FeedSettings:
        training = split == "train"
        seconds = self.batch_seconds if training else self.validation_batch_seconds
        batches, epoch_batches = self.split if training else None, self.epoch_batches
        if batches is not None and epoch_batches is not None:
            epoch_batches *= batches.micro_batches
        return FeedSettings(
            batch_samples=batches.num_samples if batches else int(seconds * SAMPLE_RATE),
            split=batches,
            max_samples=None if self.max_seconds is None else int(self.max_seconds * SAMPLE_RATE),
            min_samples=math.ceil(self.min_seconds * SAMPLE_RATE),
            num_buckets=self.num_buckets,
            seed=self.seed,
            on_corrupt=self.on_corrupt,
            resample=self.resample,
            epoch_batches=epoch_batches,
            skips=SkipCounter(),
            crop=self.crop,
            budget_name=f"data.{'batch_seconds' if training else self._evaluation_option}",
        )

    def utterances_once(self, name: FeedName) -> tuple[Iterable[Utterance], FeedSettings]:
        """Return every usable utterance of a split once, and how it becomes a waveform.

        Raises:
            ConfigurationError: If the split is not set up.
        """
        feed = self._feed(name)
        return feed.utterances_once(), feed.settings

    def train_dataloader(self) -> TrainingLoader:
        """Return this rank's batches of the trainer's current epoch (0 without a trainer).

        With `trainer.overfit_batches` every epoch has the first one's, the same crops included.

        The loader can resume in the middle of its epoch; see `TrainingLoader`.

        Raises:
            ConfigurationError: If the trainer would use this epoch's order for later ones too.
        """
        epoch = 0
        if self.trainer is not None:
            overfits = vars(self.trainer).get("overfit_batches", 0) > 0
            epoch = 0 if overfits else self.trainer.current_epoch
            # An attribute that Lightning sets without declaring it.
            every = vars(self.trainer)["reload_dataloaders_every_n_epochs"]
            if every != 1 and self.trainer.max_epochs != 1:
                raise ConfigurationError(
                    f"trainer.reload_dataloaders_every_n_epochs is {every}; it must be 1, or every "
                    "epoch would repeat the first one's batches and crops"
                )
        # Lightning doubts the length of every stream; ours is exact with any number of workers.
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined")
        rank, world_size = self._rank()
        return TrainingLoader(
            self._feed("train"),
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            seed=self.seed,
            skips=self._skips,
            window=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
        )

    def num_training_batches(self, world_size: int) -> int:
        """Return the batches that each of so many ranks gets in an epoch; needs no trainer.

        It is exact, and the same in every epoch; each micro-batch counts. A folder's utterances
        are shared out, so twice the ranks get about half the batches each. A stream's ranks get
        `epoch_batches` each, so twice the ranks read twice as much, unless these are shares of
        global batches. The trainer's limit_train_batches is left aside.

        Args:
            world_size: Number of ranks.

        Raises:
            ConfigurationError: If the train split is not set up.
            DataError: If the utterances are too few for the ranks.
        """
        return self._feed("train").num_training_batches(world_size)

    def mean_batch_seconds(self, world_size: int) -> float | None:
        """Return the mean size of a training batch in seconds, padding included.

        None for a stream, whose batches are not known beforehand; raises as `num_training_batches`.
        """
        samples = self._feed("train").mean_batch_samples(world_size)
        return None if samples is None else samples / SAMPLE_RATE

    def val_dataloader(self) -> SpeechLoader:
        """Return this rank's batches of the validation split, the longest utterances first."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> SpeechLoader:
        """Return this rank's batches of the test split, the longest utterances first."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> SpeechLoader:
        """Return this rank's batches of the test split, in the corpus' order, nothing cropped.

        An utterance longer than a batch is a batch of its own, and to be computed in windows of
        `window_samples`.
        """
        return self._evaluation_loader("predict", keep_order=True)

    @property
    def window_samples(self) -> int:
        """Most samples of an utterance that prediction computes at a time: those of a batch."""
        return int(self.validation_batch_seconds * SAMPLE_RATE)

    def _evaluation_loader(self, name: FeedName, keep_order: bool = False) -> SpeechLoader:
        feed = self._feed(name)
        cropped = None if name in self._crops_reported else feed.cropped(name)
        self._crops_reported.add(name)
        if cropped is not None:
            _log.warning(cropped)
        dataset = feed.evaluation(*self._rank(), keep_order=keep_order)
        most = feed.max_evaluation_workers
        workers = self.num_workers if most is None else min(self.num_workers, most)
        return SpeechLoader(dataset, workers, self.seed, self._skips)

    def _feed(self, name: FeedName) -> Feed:
        if name not in self._feeds:
            # Both read the test split: where one is set up, the other may be used.
            other = {"test": "predict", "predict": "test"}.get(name)
            if other not in self._feeds:
                raise ConfigurationError(f"the split {name} is not set up: call setup() first")
            return self._open(name)
        return self._feeds[name]

    def _rank(self) -> tuple[int, int]:
        """Return rank and number of ranks."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def longest_seconds(self, split: Split) -> float:
        """Return the longest waveform a batch of a split can hold, after cropping, in seconds."""
        return self._feed(split).longest_samples / SAMPLE_RATE

    def report(self) -> dict[str, float]:
        """Return counts for the log: utterances, seconds and what was skipped.

        Keys are "train/utterances", "train/seconds", "train/too_short", "train/corrupt", the same
        for the other splits that are set up, and "skipped" and "too_short" for those skipped
        while loading.
        """
        counts = {
            f"{split}/{k}": v for split, feed in self._feeds.items() for k, v in feed.counts.items()
        }
        total = self._skips.total
        return {**counts, "skipped": total.skipped, "too_short": total.too_short}

    def same_epochs(self, world_size: int, saved: Mapping[str, float] | None) -> bool:
        """Return whether a run that was saved had the same utterances in every optimizer step.

        Args:
            world_size: The saved run's ranks.
            saved: Its ``BatchSplit`` as a dictionary; None if it had no global batch.
        """
        split = self.split
        if split is None or saved is None or self._feed("train").order_depends_on_workers:
            return split is None and saved is None and world_size == self._rank()[1]
        before = BatchSplit(**saved)  # type: ignore[arg-type]
        return before.slots == split.slots and before.num_samples == split.num_samples

    def state_dict(self) -> dict[str, Any]:
        """Return what this rank skipped in the batches before the current one."""
        return self._skips.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's counts, which are those of rank 0."""
        self._skips.load_state_dict(state_dict)

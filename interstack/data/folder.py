"""Corpora whose utterances are all known before training."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Utterance, read_header
from interstack.data.audio_files import describe_unsupported, list_audio, report_unsupported
from interstack.data.base import Feed, FeedSettings, SpeechSource, Split, check_rate
from interstack.data.bucketing import BatchPlan, plan_batches
from interstack.data.dataset import BatchAssembler, BatchDataset
from interstack.data.download import LIBRISPEECH_SPLITS, download_split
from interstack.data.skips import OnCorrupt, report_skipped
from interstack.errors import DataError
from interstack.settings import check_effect

_HEADER_THREADS = 8
"""Reading a header waits for the disk, most of all a cluster's; threads hide that."""

_log = logging.getLogger(__name__)


class FileSource(SpeechSource):
    """A corpus that lists its utterances and their lengths."""

    @abstractmethod
    def utterances(self, split: Split, on_corrupt: OnCorrupt) -> tuple[list[Utterance], list[str]]:
        """Return the split's utterances in a fixed order, and the ids of corrupt ones.

        Raises:
            DataError: If the split is missing or empty, or audio is corrupt and `on_corrupt` is
                ``raise``.
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
        """List the split's utterances and keep the usable ones; see `SpeechSource.open`."""
        where = f"with {type(self).__name__}, whose epoch is every utterance once"
        fix = "limit an epoch by trainer.limit_train_batches"
        check_effect("data.epoch_batches", settings.epoch_batches, None, where, fix)
        found, corrupt = self.checked_utterances(split, settings.on_corrupt)
        for utterance in found:
            check_rate(utterance, settings.resample)
        kept = [utterance for utterance in found if utterance.num_samples >= settings.min_samples]
        if not kept:
            raise DataError(
                f"all {len(found)} utterances of {split} are shorter than "
                f"{settings.min_samples / SAMPLE_RATE} s: lower data.min_seconds"
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
        utterances: At least one.
        settings: How they become batches.
        too_short: Utterances that were skipped before, for the counts.
        corrupt: The same.

    Raises:
        ConfigurationError: If an utterance exceeds the budget of a batch, unless it is to be whole.
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
        """Check an utterance against the cache; one that it skipped is skipped in its turn."""
        try:
            self.settings.check_targets(utterance, crop)
        except DataError:
            if self.settings.on_corrupt == "raise":
                raise

    def utterances_once(self) -> Sequence[Utterance]:
        """Return the utterances, as listed."""
        return self.utterances

    @property
    def longest_samples(self) -> int:
        """The longest utterance, after cropping."""
        return max(self._lengths)

    @property
    def counts(self) -> dict[str, float]:
        """Usable utterances, their seconds after cropping, and how many were skipped."""
        return self._counts

    def cropped(self, split: str) -> str | None:
        """Return how much of the split an evaluation crops; None if nothing."""
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
        """Return the batches that each of so many ranks gets, the same in every epoch."""
        return len(self._training_plan(world_size)) // world_size

    def mean_batch_samples(self, world_size: int) -> float:
        """Return the mean padded size of an epoch's batches."""
        lengths = np.asarray(self._lengths)
        slots = world_size * self.settings.micro_batches
        ranks = self._training_plan(world_size).shuffled((self.settings.seed, 0), slots)
        sizes = [len(batch) * lengths[batch].max() for rank in ranks for batch in rank]
        return float(np.mean(sizes))

    def training(
        self, epoch: int, rank: int, world_size: int, first_batch: int = 0
    ) -> BatchDataset:
        """Return one rank's batches of an epoch; together the ranks' hold every utterance once.

        A step's batches of all ranks depend on their number, ranks × micro-batches, alone.
        """
        key, micro_batches = (self.settings.seed, epoch), self.settings.micro_batches
        slots = self._training_plan(world_size).shuffled(key, world_size * micro_batches)
        batches = [batch for step in zip(*slots[rank::world_size], strict=True) for batch in step]
        assemble = BatchAssembler(self.settings, epoch)
        return BatchDataset(self._utterances(batches), assemble, first_batch)

    def evaluation(self, rank: int, world_size: int, keep_order: bool = False) -> BatchDataset:
        """Return one rank's batches of a single pass: as listed, or longest first.

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


class LibriSpeechFolder(FileSource):
    """A folder that holds `LibriSpeech/<split>/<speaker>/<chapter>/<utterance>.flac`.

    Any other layout below a split's folder does as well, with files of every format that
    libsndfile reads: FLAC, WAV, MP3, Ogg Vorbis, Opus, AIFF, AU and many more, whatever their
    suffixes. Each file is used once, whatever links lead to it.

    Args:
        root: The folder that holds `LibriSpeech`, or the splits themselves.
        train: Splits (folder names) to train on.
        validation: Splits to validate on.
        test: Splits to test and predict on.
        download: Fetch missing LibriSpeech splits through torchaudio, with checksums. The 960
            hours take 60 GB.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: Sequence[str] = ("train-clean-100",),
        validation: Sequence[str] = ("dev-clean",),
        test: Sequence[str] = ("test-clean",),
        download: bool = False,
    ) -> None:
        self.root = Path(root)
        self.splits: dict[Split, tuple[str, ...]] = {
            "train": tuple(train),
            "validation": tuple(validation),
            "test": tuple(test),
        }
        self.download = download

    @property
    def base(self) -> Path:
        """The folder whose subfolders are the splits."""
        nested = self.root / "LibriSpeech"
        to_be_made = self.download and self.root.name != "LibriSpeech"
        return nested if nested.is_dir() or to_be_made else self.root

    def prepare(self, splits: Sequence[Split] = ("train", "validation", "test")) -> None:
        """Download what is missing of some splits if `download` is set."""
        if not self.download:
            return
        for name in dict.fromkeys(name for split in splits for name in self.splits[split]):
            if not (self.base / name).is_dir():
                download_split(name, self.base)

    def utterances(self, split: Split, on_corrupt: OnCorrupt) -> tuple[list[Utterance], list[str]]:
        """List the split's utterances, sorted by path, each by the header of its file.

        Raises:
            DataError: See `FileSource.utterances`.
        """
        files = self._files(split)
        ids = self._ids(files, split)
        with ThreadPoolExecutor(_HEADER_THREADS) as pool:
            results = list(pool.map(_header_or_error, ids, files))
        errors = [result for result in results if isinstance(result, DataError)]
        if errors and on_corrupt == "raise":
            more = f" ({len(errors)} files are corrupt)" if len(errors) > 1 else ""
            raise DataError(f"{errors[0]}, or set {self.corrupt_option} to skip{more}")
        found = [result for result in results if isinstance(result, Utterance)]
        if not found:
            raise DataError(f"all {len(errors)} audio files of {split} are corrupt: {errors[0]}")
        report_skipped(len(errors), str(errors[0]) if errors else "", f"files of {split}")
        pairs = zip(ids, results, strict=True)
        return found, [id_ for id_, result in pairs if isinstance(result, DataError)]

    def _files(self, split: Split) -> list[str]:
        """List the audio files of a split's folders, each once."""
        if not self.splits[split]:
            raise DataError(f"no split is named for {split}: set {self.section}.{split}")
        seen: set[object] = set()
        files, unsupported, repeated = [], [], 0
        for name in self.splits[split]:
            folder = self.base / name
            if not folder.is_dir():
                raise DataError(self._missing(name))
            if os.path.realpath(folder) in seen:
                continue  # within a folder that is named before
            found = list_audio(folder, seen)
            if not (found.files or list_audio(folder).files):
                there = found.unsupported
                raise DataError(
                    f"{folder} holds no audio that can be read"
                    + (f" but {describe_unsupported(there)}: convert it to FLAC" if there else "")
                    + ("" if there else ": put FLAC, WAV, MP3, Ogg or Opus files there")
                )
            files += found.files
            unsupported += found.unsupported
            repeated += found.repeated
        report_unsupported(unsupported, split)
        if repeated:
            _log.info(
                "%d more paths of %s lead to files that it already has; each file is used once",
                *(repeated, split),
            )
        return files

    def _missing(self, name: str) -> str:
        """Return what there is instead of a split, and how to get it."""
        if not self.base.is_dir():
            there = f"{self.base} is no folder"
        else:
            names = sorted(entry.name for entry in self.base.iterdir() if entry.is_dir())
            there = f"{self.base} has {', '.join(names) or 'no folders'}"
        root = self.root_option or f"{self.section}.root"
        fix = f"name one of these, or point {root} elsewhere"
        if name in LIBRISPEECH_SPLITS and not self.download and not self.root_option:
            fix += f", or set {self.section}.download to true to fetch it"
        return f"there is no split {name!r}, {there}: {fix}"

    def _ids(self, files: Sequence[str], split: Split) -> list[str]:
        """Name utterances as LibriSpeech does, by file name; by path where names recur.

        Files that then differ by their suffixes alone keep them.

        Raises:
            DataError: If a name is not UTF-8, which no output could have.
        """
        paths = [Path(file) for file in files]
        unreadable = [file for file in files if not _is_utf8(file)]
        if unreadable:
            raise DataError(
                f"the name of {unreadable[0].encode(errors='backslashreplace').decode()} is not "
                "UTF-8: rename it"
            )
        stems = [path.stem for path in paths]
        if len(set(stems)) == len(stems):
            return stems
        relative = [path.relative_to(self.base) for path in paths]
        ids = [path.with_suffix("").as_posix() for path in relative]
        counts = Counter(ids)
        shared = [path for path, id_ in zip(relative, ids, strict=True) if counts[id_] > 1]
        if shared:
            _log.warning(
                "%d files of %s differ by their suffixes alone (%s, %s, …): each is an utterance "
                "of its own; remove those that repeat a recording",
                *(len(shared), split, shared[0], shared[1]),
            )
        return [
            path.as_posix() if counts[id_] > 1 else id_
            for path, id_ in zip(relative, ids, strict=True)
        ]


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that Python could not decode
        return False
    return True


def _header_or_error(id_: str, file: str) -> Utterance | DataError:
    try:
        return read_header(id_, file, file)
    except DataError as error:
        return error

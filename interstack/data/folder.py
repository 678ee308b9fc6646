"""LibriSpeech, or any audio in its layout, in a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from interstack.data.download import LIBRISPEECH_SPLITS, download_split
from interstack.data.files import FileSource
from interstack.data.source import Split
from interstack.data.tolerance import OnCorrupt
from interstack.data.utterance import Utterance, read_header
from interstack.errors import DataError

_log = logging.getLogger(__name__)

_SUFFIXES = frozenset({".flac", ".wav", ".ogg"})
_HEADER_THREADS = 8
"""Reading a header waits for the disk, most of all a cluster's; threads hide that."""


class LibriSpeechFolder(FileSource):
    """A folder that holds `LibriSpeech/<split>/<speaker>/<chapter>/<utterance>.flac`.

    Any other layout below a split's folder does as well, with .flac, .wav or .ogg files.

    Args:
        root: the folder that holds `LibriSpeech`, or the splits themselves.
        train: splits (folder names) to train on.
        validation: splits to validate on.
        test: splits to test and predict on.
        download: fetch missing LibriSpeech splits through torchaudio, with checksums. The 960
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
        """Downloads what is missing of some splits if `download` is set."""
        if not self.download:
            return
        for name in dict.fromkeys(name for split in splits for name in self.splits[split]):
            if not (self.base / name).is_dir():
                download_split(name, self.base)

    def utterances(self, split: Split, on_corrupt: OnCorrupt) -> tuple[list[Utterance], list[str]]:
        """Lists the split's utterances, sorted by path, each by the header of its file.

        Raises:
            DataError: see `FileSource.utterances`.
        """
        files = [file for name in self.splits[split] for file in self._files(name)]
        if not files:
            raise DataError(f"no split is named for {split}: set {self.section}.{split}")
        ids = self._ids(files)
        with ThreadPoolExecutor(_HEADER_THREADS) as pool:
            results = list(pool.map(_header_or_error, ids, files))
        errors = [result for result in results if isinstance(result, DataError)]
        if errors and on_corrupt == "raise":
            more = f" ({len(errors)} files are corrupt.)" if len(errors) > 1 else ""
            raise DataError(f"{errors[0]}{more}")
        for error in errors:
            _log.warning("left out: %s", error)
        found = [result for result in results if isinstance(result, Utterance)]
        if not found:
            raise DataError(f"All {len(errors)} audio files of {split} are corrupt. {errors[0]}")
        pairs = zip(files, results, strict=True)
        return found, [file for file, result in pairs if isinstance(result, DataError)]

    def _files(self, name: str) -> list[str]:
        """Lists a split folder's audio files, sorted."""
        folder = self.base / name
        if not folder.is_dir():
            raise DataError(self._missing(name))
        files = sorted(
            os.path.join(parent, file)  # noqa: PTH118 - a Path for each of 280 000 files is slow
            for parent, _, names in os.walk(folder, followlinks=True)
            for file in names
            if os.path.splitext(file)[1].lower() in _SUFFIXES  # noqa: PTH122
        )
        if not files:
            raise DataError(f"{folder} holds no .flac, .wav or .ogg file.")
        return files

    def _missing(self, name: str) -> str:
        """Says what there is instead of a split, and how to come by it."""
        if not self.base.is_dir():
            there = f"{self.base} is no folder"
        else:
            names = sorted(entry.name for entry in self.base.iterdir() if entry.is_dir())
            there = f"{self.base} has {', '.join(names) or 'no folders'}"
        mend = f"name one of these, or point {self.section}.root elsewhere"
        if name in LIBRISPEECH_SPLITS and not self.download:
            mend += f", or set {self.section}.download to true to fetch it"
        return f"there is no split {name!r}, {there}: {mend}"

    def _ids(self, files: Sequence[str]) -> list[str]:
        """Names utterances as LibriSpeech does, by file name; by path where names recur."""
        stems = [Path(file).stem for file in files]
        if len(set(stems)) == len(stems):
            return stems
        return [Path(file).relative_to(self.base).with_suffix("").as_posix() for file in files]


def _header_or_error(id_: str, file: str) -> Utterance | DataError:
    try:
        return read_header(id_, file, file)
    except DataError as error:
        return error

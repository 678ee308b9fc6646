"""LibriSpeech, or any audio in its layout, in a folder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from interstack.data.audio_files import describe_unsupported, list_audio
from interstack.data.download import LIBRISPEECH_SPLITS, download_split
from interstack.data.files import FileSource
from interstack.data.left_out import report_skipped
from interstack.data.source import Split
from interstack.data.tolerance import OnCorrupt
from interstack.data.utterance import Utterance, read_header
from interstack.errors import DataError

_log = logging.getLogger(__name__)

_HEADER_THREADS = 8
"""Reading a header waits for the disk, most of all a cluster's; threads hide that."""


class LibriSpeechFolder(FileSource):
    """A folder that holds `LibriSpeech/<split>/<speaker>/<chapter>/<utterance>.flac`.

    Any other layout below a split's folder does as well, with files of every format that
    libsndfile reads: FLAC, WAV, MP3, Ogg Vorbis, Opus, AIFF, AU and many more, whatever their
    names say about their content. Each file is used once, whatever links lead to it.

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
            raise DataError(f"All {len(errors)} audio files of {split} are corrupt: {errors[0]}")
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
        if unsupported:
            _log.warning(
                "%d files of %s look like audio that can't be read and are skipped (%s): convert "
                "them to FLAC, or remove them",
                *(len(unsupported), split, describe_unsupported(unsupported)),
            )
        if repeated:
            _log.info(
                "%d more paths of %s lead to files that it already has; each file is used once",
                *(repeated, split),
            )
        return files

    def _missing(self, name: str) -> str:
        """Says what there is instead of a split, and how to come by it."""
        if not self.base.is_dir():
            there = f"{self.base} is no folder"
        else:
            names = sorted(entry.name for entry in self.base.iterdir() if entry.is_dir())
            there = f"{self.base} has {', '.join(names) or 'no folders'}"
        root = self.root_option or f"{self.section}.root"
        mend = f"name one of these, or point {root} elsewhere"
        if name in LIBRISPEECH_SPLITS and not self.download and not self.root_option:
            mend += f", or set {self.section}.download to true to fetch it"
        return f"there is no split {name!r}, {there}: {mend}"

    def _ids(self, files: Sequence[str], split: Split) -> list[str]:
        """Name utterances as LibriSpeech does, by file name; by path where names recur.

        Files that then differ by their suffixes alone keep them.

        Raises:
            DataError: If a name is not UTF-8, which no output could be called by.
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

"""Which files of a folder are audio."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import soundfile

from interstack.data.audio import open_audio
from interstack.errors import DataError

_NO_SUFFIXES: Final = frozenset({"raw", "sd2", "mat4", "mat5", "mpc2k", "wavex"})
"""libsndfile's names of formats that no file is called after, or that it can't recognise: without a
header, or with the header in another file."""
_ALIASES: Final = frozenset(
    {".aif", ".aifc", ".8svx", ".iff", ".mp1", ".mp2", ".mpga", ".oga", ".opus"}
    | {".sf", ".snd", ".sph", ".wave"}
)
AUDIO_SUFFIXES: Final = _ALIASES | {
    f".{name.lower()}" for name in soundfile.available_formats() if name.lower() not in _NO_SUFFIXES
}
"""Suffixes of files that libsndfile reads, in lower case."""
_HEADERLESS: Final = frozenset(
    {".al", ".alaw", ".g722", ".g729", ".gsm", ".pcm", ".raw", ".sln", ".ul", ".ulaw", ".vox"}
)
_OTHER_SUFFIXES: Final = _HEADERLESS | frozenset(
    {".3gp", ".aac", ".ac3", ".aiffc", ".amr", ".ape", ".asf", ".awb", ".dff", ".dsf", ".dts"}
    | {".flv", ".m4a", ".m4b", ".m4p", ".mka", ".mkv", ".mov", ".mp4", ".mpc", ".ra", ".rm"}
    | {".sd2", ".shn", ".spx", ".tak", ".tta", ".weba", ".webm", ".wma", ".wv"}
)
"""Suffixes of other files that hold speech; some of them are misnamed."""
_KNOWN: Final = AUDIO_SUFFIXES | _OTHER_SUFFIXES
_THREADS: Final = 8
"""Opening a file waits for the disk, most of all a cluster's; threads hide that."""

_log = logging.getLogger(__name__)


class AudioFiles(NamedTuple):
    """The audio in a folder.

    Attributes:
        files: What can be decoded by its name or content, each file once, sorted.
        unsupported: What looks like audio and can't be decoded, sorted.
        repeated: How many more paths lead to files that are listed.
    """

    files: list[str]
    unsupported: list[str]
    repeated: int


def list_audio(folder: str | os.PathLike[str], seen: set[object] | None = None) -> AudioFiles:
    """List the audio below a folder: each file once, whatever links lead to it.

    Links are followed after everything else, so that a file's name does not depend on them. One
    that leads to a folder above itself brings nothing new and is not followed. Names that begin
    with a dot are skipped: macOS, editors and synchronisation leave such files.

    Args:
        folder: Where to look.
        seen: Folders and files that are listed already, which this call adds to; a fresh set
            unless several folders make one split.

    Raises:
        DataError: If a folder can't be listed.
    """
    seen = set() if seen is None else seen
    found = [path for path in _walk(os.fspath(folder), seen) if _suffix(path) in _KNOWN]
    files, repeated = _without_repeats(found, seen)
    supported = [file for file in files if _suffix(file) in AUDIO_SUFFIXES]
    others = [file for file in files if _suffix(file) not in AUDIO_SUFFIXES]
    with ThreadPoolExecutor(_THREADS) as pool:
        misnamed = list(pool.map(_is_audio, others))
    supported += [file for file, is_audio in zip(others, misnamed, strict=True) if is_audio]
    unsupported = [file for file, is_audio in zip(others, misnamed, strict=True) if not is_audio]
    return AudioFiles(sorted(supported), sorted(unsupported), repeated)


def supported_audio(folder: str | os.PathLike[str]) -> list[str]:
    """List the audio below a folder that can be read, and warn of files that can't."""
    found = list_audio(folder)
    report_unsupported(found.unsupported, folder)
    return found.files


def report_unsupported(files: Sequence[str], where: object) -> None:
    """Warn of files that look like audio and can't be read; nothing if there are none."""
    if files:
        _log.warning(
            "%d files of %s look like audio that can't be read and are skipped (%s): convert them "
            "to FLAC, or remove them",
            *(len(files), where, describe_unsupported(files)),
        )


def describe_unsupported(files: Sequence[str]) -> str:
    """Count files by their suffixes, and name the first: ``3 .m4a, 1 .wma, the first: a/x.m4a``."""
    counts = Counter(_suffix(file) for file in files)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return f"{kinds}, the first: {files[0]}"


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - a Path for each of 280 000 is slow


def _is_audio(path: str) -> bool:
    """Return whether a file is audio in spite of its name."""
    if _suffix(path) in _HEADERLESS:
        return False
    try:
        with open_audio(path, path):
            return True
    except DataError:
        return False


def _walk(folder: str, seen: set[object]) -> list[str]:
    """Return all visible files: those of the folder itself, then those that links lead to."""
    files: list[str] = []
    folders, links = [folder], list[str]()
    root = Path(os.path.realpath(folder))
    while folders:
        here = folders.pop()
        real = os.path.realpath(here)
        if real not in seen:
            seen.add(real)
            for entry in _entries(here):
                if entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    files.append(entry.path)
        if not folders:
            links.sort(reverse=True)
            while links and not folders:
                link = links.pop()
                if not _is_folder(link):
                    files.append(link)
                elif not _leads_up(link, root):
                    folders.append(link)
    return files


def _is_folder(link: str) -> bool:
    try:
        return Path(link).is_dir()
    except OSError as error:
        raise DataError(
            f"the link {link} can't be followed ({error.strerror}): make what it leads to readable "
            "or remove it"
        ) from error


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"the folder {folder} can't be listed ({error.strerror}): make it readable or remove it"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def _leads_up(link: str, root: Path) -> bool:
    """Return whether a link leads to a folder that holds it, or all of what is listed."""
    target = Path(os.path.realpath(link))
    holder = Path(os.path.realpath(Path(link).parent))
    return holder.is_relative_to(target) or root.is_relative_to(target)


def _without_repeats(paths: Sequence[str], seen: set[object]) -> tuple[list[str], int]:
    """Return paths of different files, those first that come first, and how many more there were.

    A file is known by where links lead, and, where it has several names of its own, by its number
    on its disk.
    """
    folders = {path.rpartition("/")[0] for path in paths}
    real_folders = {folder: os.path.realpath(folder) for folder in folders}

    def identities(path: str) -> list[object]:
        try:
            status = Path(path).lstat()
            folder, _, name = path.rpartition("/")
            real = f"{real_folders[folder]}/{name}"
            if stat.S_ISLNK(status.st_mode):
                real, status = os.path.realpath(path), Path(path).stat()
        except OSError:  # a broken link, which is an error when it is opened
            return [path]
        return [real] if status.st_nlink < 2 else [real, (status.st_dev, status.st_ino)]

    kept = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for path, names in zip(paths, pool.map(identities, paths), strict=True):
            if seen.isdisjoint(names):
                kept.append(path)
            seen.update(names)
    return kept, len(paths) - len(kept)

"""Downloading LibriSpeech splits through torchaudio, atomically."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from interstack.errors import DataError
from interstack.utils.disk import is_disk_error, reason

_log = logging.getLogger(__name__)

LIBRISPEECH_SPLITS: Final = (
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
)

_BROKEN_ARCHIVE: Final = (EOFError, tarfile.TarError, zlib.error)


def download_split(name: str, folder: Path) -> None:
    """Download one LibriSpeech split, check it, and move it to `folder/name`.

    torchaudio takes a partly unpacked split for a complete one, so that it is unpacked in a folder
    of its own beside the target, and only a complete split is moved. Of several processes, also of
    machines that share a file system, one downloads and the others wait for it.

    Raises:
        DataError: If the name is none of LibriSpeech's, the folder can't be written or locked, or
            the download, its checksum or unpacking failed.
    """
    if name not in LIBRISPEECH_SPLITS:
        raise DataError(
            f"{name!r} can't be downloaded: name one of {', '.join(LIBRISPEECH_SPLITS)}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder / f".download-{name}.lock"):
            if not (folder / name).exists():  # else another process was faster
                _download(name, folder)
    except (OSError, RuntimeError, *_BROKEN_ARCHIVE) as error:
        if is_disk_error(error):
            raise DataError(
                f"LibriSpeech {name} can't be written to {folder} ({reason(error)}): free space, "
                "or give data.source.root another directory"
            ) from error
        raise DataError(
            f"LibriSpeech {name} could not be downloaded ({error}): try again, or unpack "
            f"{name}.tar.gz from openslr.org/12 so that {folder / name} exists"
        ) from error


def _download(name: str, folder: Path) -> None:
    from torchaudio.datasets import LIBRISPEECH

    workspace = folder / f".download-{name}"
    unpacked = workspace / "LibriSpeech"
    _log.info("downloading LibriSpeech %s to %s", name, folder)
    workspace.mkdir(exist_ok=True)
    # A killed download may leave a complete archive, which is used, and partial ones.
    shutil.rmtree(unpacked, ignore_errors=True)
    for part in workspace.glob("*.partial"):
        part.unlink()
    try:
        with _safe_unpacking():
            LIBRISPEECH(workspace, url=name, download=True)
    except _BROKEN_ARCHIVE:
        (workspace / f"{name}.tar.gz").unlink()  # or the next attempt would use it again
        raise
    (unpacked / name).rename(folder / name)
    shutil.rmtree(workspace)


@contextmanager
def _safe_unpacking() -> Iterator[None]:
    """Unpack archives by the same rules under every Python: nothing outside the folder.

    torchaudio leaves the rules to Python, whose default warns from 3.12 on and changes in 3.14.
    """
    if not hasattr(tarfile, "data_filter"):  # Python 3.11.0 to 3.11.3
        yield
        return
    default = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = default


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Run the block in one process at a time: the one that holds the lock on a file.

    The system releases the lock of a process that dies, so none is ever left over.

    Raises:
        OSError: If the file can't be made, or its file system has no locks.
    """
    while True:
        with path.open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # POSIX allows either for "held by another"
                _log.info("another process is at %s; waiting for it", path)
                fcntl.lockf(file, fcntl.LOCK_EX)
            if not _is_still(file, path):
                continue  # its holder removed it meanwhile: others lock a new file
            try:
                yield
            finally:
                path.unlink()
            return


def _is_still(file: IO[str], path: Path) -> bool:
    """Return whether an open file is the one that its path leads to."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

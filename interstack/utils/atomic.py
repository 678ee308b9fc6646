"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

PART = ".part"
"""What the name of a file that is being written ends with."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when all of it is on the disk.

    Lightning writes into the system's temporary directory first, which may be small, or on another
    file system, from where a move is a copy and so no longer atomic.

    Attributes:
        failure: Why the last checkpoint could not be written; None if it could. It is kept and not
            raised, because only rank zero writes, and the others wait for it.
    """

    failure: OSError | None = None

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401, Lightning's
    ) -> None:
        """Write a checkpoint; a failure leaves what was there before, and is kept in ``failure``.

        Args:
            checkpoint: What to save.
            path: Where; object stores write whole objects by themselves, and are Lightning's.
            storage_options: Nothing that a file wants.
        """
        self.failure = None
        try:
            if "://" in str(path):
                super().save_checkpoint(checkpoint, path, storage_options)
                return
            buffer = io.BytesIO()  # torch hides a full disk behind an error of its own writer
            torch.save(checkpoint, buffer)
            with buffer.getbuffer() as content:
                write_whole(Path(path), content)
        except OSError as error:
            # The traceback's frames would hold the buffer as long as the failure is kept.
            self.failure = error.with_traceback(None)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader, or a crash, meets the old one or the new one whole.

    Raises:
        OSError: If it can't be written; the old one is still there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file so that all of the content is there, or, after an error, nothing of it.

    Raises:
        OSError: If it can't be written; the file is as it was then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:  # a buffer would try again at its end
        size = file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(content):  # a disk that gets full takes a part without an error
                written += file.write(content[written:])
        except OSError:
            file.truncate(size)
            raise


def link_whole(target: Path, link: Path) -> None:
    """Give a file a second name, replacing what had it; a copy where there are no hard links.

    Raises:
        OSError: If neither can be made.
    """
    part = _part_of(link)
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(target, part)
        except OSError:
            shutil.copyfile(target, part)
        part.replace(link)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def remove_parts(directory: Path) -> None:
    """Remove what a killed process left half-written."""
    for part in directory.glob(f".*{PART}"):
        part.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{PART}")


def _sync_directory(directory: Path) -> None:
    """Make the new name itself durable; some file systems can't, and then it soon is anyway."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

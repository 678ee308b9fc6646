"""Files that are written atomically: a reader, or a crash, meets the old content or the new."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

PART = ".part"
"""Suffix of a file that is being written."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its path and moves it there when all of it is on the disk.

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
            path: Where; a URL is left to Lightning, as object stores write atomically.
            storage_options: For a URL.
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
    """Write a file atomically, and its directory if that is missing.

    Raises:
        OSError: If it can't be written; the old one is still there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(OSError):  # makes the name itself durable, where a disk can do that
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append_whole(path: Path, content: bytes) -> None:
    """Append to a file atomically, and make its directory if that is missing.

    Raises:
        OSError: If it can't be written; the file is as it was then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:  # a buffer would retry on close
        size = file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(content):  # a full disk accepts a part without an error
                written += file.write(content[written:])
        except OSError:
            file.truncate(size)
            raise


def link_whole(target: Path, link: Path) -> None:
    """Give a file a second name, replacing what had it; copy it where there are no hard links.

    Raises:
        OSError: If neither can be made.
    """
    with _replacing(link) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(target, part)
        except OSError:
            shutil.copyfile(target, part)


def remove_parts(directory: Path) -> None:
    """Remove what a killed process left unfinished."""
    for part in directory.glob(f".*{PART}"):
        part.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside another one, which it replaces at the end, or is removed on an error."""
    part = path.with_name(f".{path.name}{PART}")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise

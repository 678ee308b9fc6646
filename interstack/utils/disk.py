"""Disks that fail: their errors, checks beforehand, and files whose writing can be deferred."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from interstack.errors import ConfigurationError, InterstackError
from interstack.utils.atomic import PART, append_whole, write_whole

_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}
    | {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOLINK, errno.ENOTCONN}
)
_OS_ERROR = re.compile(r"(?:error: )?([^:]*) \(os error \d+\)")
_TRIAL_BYTES = 2**16
_BLOCK_BYTES = 2**24

log = logging.getLogger(__name__)


@dataclass
class _Content:
    """What a file still has to get.

    Attributes:
        whole: Replaces the file; None: the file stays.
        tail: Is appended to it.
    """

    whole: bytes | None = None
    tail: bytearray = field(default_factory=bytearray)

    def write(self, path: Path) -> None:
        if self.whole is None:
            append_whole(path, bytes(self.tail))
        else:
            write_whole(path, self.whole + self.tail)


_contents: dict[Path, _Content] = {}
_deferred: dict[Path, tuple[Callable[[], None], str]] = {}  # how to retry, and why it failed
_lock = threading.RLock()  # TensorBoard writes from a thread of its own


def is_disk_error(error: BaseException) -> bool:
    """Return whether an error is a disk's or file server's, and no defect of a program."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def reason(error: BaseException) -> str:
    """Return the system's message of a failed read or write: ``No space left on device``."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    found = _OS_ERROR.search(str(error))  # safetensors has its own kind for what Rust met
    return found.group(1).strip() if found else str(error)


def is_there(path: Path) -> bool:
    """Return whether a path exists; an error of the disk, unlike for ``Path.exists``, is no "no".

    Raises:
        OSError: If the disk or file server fails, or the path is a link that leads nowhere: to a
            disk, say, that is not mounted now.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            why = f"it is a link to {path.readlink()}, which is not there"
            raise OSError(errno.ENOLINK, why, str(path)) from None
        return False
    return True


def unread(path: Path, error: OSError) -> str:
    """Return the message for a file that can't be read now, but may be sound."""
    return f"{path} can't be read ({reason(error)}): give the same command again once it can"


def disk_fault(path: Path) -> OSError | None:
    """Read a whole file, and return the error of the disk or file server, if there is one.

    Libraries report such an error as damage of the file, whose fix is another one.
    """
    try:
        with path.open("rb") as file:
            while file.read(_BLOCK_BYTES):
                pass
    except OSError as error:
        return error
    return None


@contextmanager
def write_errors(what: Path | str, fix: str) -> Iterator[None]:
    """Turn a failing write into one line that names the fix.

    Args:
        what: What is written.
        fix: What the user can do.

    Raises:
        InterstackError: In place of an OSError, or of safetensors' error for one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "os error" not in str(error):
            raise
        file = getattr(error, "filename", None)
        is_elsewhere = file is not None and not Path(str(file)).is_relative_to(Path(what).parent)
        where = f"{file}: " if is_elsewhere else ""
        raise InterstackError(f"{what} can't be written ({where}{reason(error)}): {fix}") from error


def check_output(path: Path, option: str) -> None:
    """Refuse a file that can't be written, before what goes into it is computed.

    Args:
        path: The file; one that is there is left as it is.
        option: The option that names it.

    Raises:
        ConfigurationError: If it is a directory, lies in none, or the disk refuses it.
    """
    if path.is_dir():
        raise ConfigurationError(f"{option} {path} is a directory: give {option} another file")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{option} {path} lies in no directory: make it first")
    try:
        try_writing(path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"{option} {path} can't be written ({reason(error)}): free space, or give another file"
        ) from error


def write_output(path: Path, content: bytes, option: str) -> None:
    """Write a command's output atomically.

    Args:
        path: The file.
        content: All of it.
        option: The option that names it.

    Raises:
        InterstackError: If it can't be written.
    """
    with write_errors(path, f"free space, or give {option} another file"):
        write_whole(path, content)


def try_writing(directory: Path) -> None:
    """Write a small file to a directory and remove it.

    Raises:
        OSError: If that fails.
    """
    trial = directory / f".trial-{os.getpid()}{PART}"
    try:
        write_whole(trial, bytes(_TRIAL_BYTES))
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)


def write_or_defer(path: Path, content: bytes) -> bool:
    """Replace a file atomically; where that fails, keep the content and retry later.

    Args:
        path: The file; its directory is made.
        content: All of it.

    Returns:
        Whether it is on the disk.
    """
    with _lock:
        _contents[path] = _Content(whole=content)
        return _write_content(path)


def append_or_defer(path: Path, content: bytes) -> bool:
    """Append to a file atomically; where that fails, keep the content and retry later.

    Args:
        path: The file; it is made, with its directory.
        content: What is appended to what is there, and to what is deferred.

    Returns:
        Whether it is on the disk.
    """
    with _lock:
        _contents.setdefault(path, _Content()).tail += content
        return _write_content(path)


def try_or_defer(path: Path, write: Callable[[], None]) -> bool:
    """Write a file by a function that keeps its own content until it has succeeded.

    Args:
        path: What it writes, for the warning.
        write: Raises OSError where it can't, and is called again later then.

    Returns:
        Whether it has succeeded.
    """
    with _lock:
        try:
            write()
        except OSError as error:
            if path not in _deferred:
                log.warning(
                    "%s can't be written (%s): it is kept in memory and retried later; free space "
                    "on its disk",
                    path,
                    reason(error),
                )
            _deferred[path] = (write, reason(error))
            return False
        if _deferred.pop(path, None) is not None:
            log.info("%s is written now, with everything that was kept", path)
        return True


def write_deferred() -> dict[Path, str]:
    """Retry everything that is deferred.

    Returns:
        What is still deferred, and why.
    """
    with _lock:
        for path, (write, _) in list(_deferred.items()):
            try_or_defer(path, write)
        return {path: why for path, (_, why) in _deferred.items()}


@contextmanager
def deferred_writes() -> Iterator[None]:
    """Retry what is deferred a last time at the end of the block, and log what is lost."""
    _forget()
    try:
        yield
    finally:
        for path, why in write_deferred().items():
            log.warning("%s lacks its last part, which could not be written (%s)", path, why)
        _forget()


def _forget() -> None:
    with _lock:
        _contents.clear()
        _deferred.clear()


def _write_content(path: Path) -> bool:
    content = _contents[path]

    def write() -> None:
        content.write(path)
        if _contents.get(path) is content:
            del _contents[path]

    return try_or_defer(path, write)

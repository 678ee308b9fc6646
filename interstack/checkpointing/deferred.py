"""Files of a running run that can wait: what a full disk refuses now is written later.

One rule for all of them (``stages.json``, ``events.jsonl``, ``metrics.csv``, TensorBoard's events):
a failed write costs a warning and keeps the content in memory; every later write to the file, every
checkpoint and the end of the run try again. What can't wait is refused by `disk.write_errors`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from interstack.checkpointing.atomic import append_whole, write_whole
from interstack.checkpointing.disk import reason

log = logging.getLogger(__name__)


@dataclass
class _Content:
    """What a file still has to get.

    Attributes:
        whole: Takes the place of the file; None: the file stays.
        tail: Goes behind it.
    """

    whole: bytes | None = None
    tail: bytearray = field(default_factory=bytearray)

    def write(self, path: Path) -> None:
        if self.whole is None:
            append_whole(path, bytes(self.tail))
        else:
            write_whole(path, self.whole + self.tail)


_contents: dict[Path, _Content] = {}
_waiting: dict[Path, tuple[Callable[[], None], str]] = {}  # how to try again, and why it failed
_lock = threading.RLock()  # TensorBoard writes from a thread of its own


def write_or_defer(path: Path, content: bytes) -> bool:
    """Replace a file atomically; where that fails, keep the content and try again later.

    Args:
        path: The file; its directory is made.
        content: All of it.

    Returns:
        Whether it is on the disk.
    """
    with _lock:
        _contents[path] = _Content(whole=content)
        return _try_content(path)


def append_or_defer(path: Path, content: bytes) -> bool:
    """Append to a file, all or nothing; where that fails, keep the content and try again later.

    Args:
        path: The file; it is made, with its directory.
        content: What goes behind what is there, and behind what is still waiting.

    Returns:
        Whether it is on the disk.
    """
    with _lock:
        _contents.setdefault(path, _Content()).tail += content
        return _try_content(path)


def try_or_defer(path: Path, write: Callable[[], None]) -> bool:
    """Write a file by a function that keeps its own content until it has succeeded.

    Args:
        path: What it writes, for the warning.
        write: Raises OSError where it can't; is called again later then.

    Returns:
        Whether it has succeeded.
    """
    with _lock:
        try:
            write()
        except OSError as error:
            if path not in _waiting:
                log.warning(
                    "%s can't be written (%s): it is kept in memory and tried again later; free "
                    "space on its disk",
                    path,
                    reason(error),
                )
            _waiting[path] = (write, reason(error))
            return False
        if _waiting.pop(path, None) is not None:
            log.info("%s is written now, with everything that was kept", path)
        return True


def write_deferred() -> dict[Path, str]:
    """Try everything again that is waiting.

    Returns:
        What is still waiting, and why.
    """
    with _lock:
        for path, (write, _) in list(_waiting.items()):
            try_or_defer(path, write)
        return {path: why for path, (_, why) in _waiting.items()}


@contextmanager
def deferred_writes() -> Iterator[None]:
    """Hold what waits until a run is over: then try a last time, and name what is lost."""
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
        _waiting.clear()


def _try_content(path: Path) -> bool:
    content = _contents[path]

    def write() -> None:
        content.write(path)
        if _contents.get(path) is content:
            del _contents[path]

    return try_or_defer(path, write)

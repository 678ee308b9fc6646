"""Disks that refuse: full ones that catch files of every size, for everybody and not root alone."""

from __future__ import annotations

import builtins
import errno
import fnmatch
import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class NoSpace:
    """Refuses to make, or write to, files below a directory, as a disk without a free block does.

    A context manager. Files that are open already are not concerned; our own are opened for each
    write. Renaming and removing need no space, and work.

    Args:
        directory: Everything below it is refused.
        pattern: Of the paths below it that are.
        code: The error, such as that of a full disk.
    """

    def __init__(self, directory: Path, pattern: str = "*", code: int = errno.ENOSPC) -> None:
        self.directory = os.path.realpath(directory)
        self.pattern = pattern
        self.code = code
        self._patches = [
            mock.patch.object(module, name, self._refusing(getattr(module, name), name))
            for module, name in ((builtins, "open"), (io, "open"), (os, "mkdir"), (os, "link"))
        ]

    def __enter__(self) -> NoSpace:
        """Let the disk be full."""
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let it have space again."""
        for patch in self._patches:
            patch.stop()

    def _refusing(self, call: Callable[..., object], name: str) -> Callable[..., object]:
        def refuse(path: object, *arguments: object, **named: object) -> object:
            target = arguments[0] if name == "link" else path
            mode = str(named.get("mode", arguments[0] if arguments else "r"))
            writes = name != "open" or any(sign in mode for sign in "wax+")
            if writes and self._is_below(target):
                raise OSError(self.code, os.strerror(self.code), str(target))
            return call(path, *arguments, **named)

        return refuse

    def _is_below(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        found = os.path.realpath(path)
        below = found.removeprefix(self.directory + os.sep)
        return found != below and fnmatch.fnmatch(below, self.pattern)

"""A lock on a run's directory: one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from interstack.errors import ConfigurationError
from interstack.utils.disk import reason

log = logging.getLogger(__name__)


@contextmanager
def run_lock(
    directory: Path, alternative: str = "give this one another trainer.default_root_dir"
) -> Iterator[None]:
    """Keep other processes from running in a directory.

    A POSIX record lock: the kernel releases it when the process dies, however it dies, and forked
    decoding workers, which outlive a killed process by seconds, do not share it. The locked file
    lies beside the directory, which may be renamed.

    Args:
        directory: The run's directory; it need not exist.
        alternative: What the second one may do but wait, for the message.

    Raises:
        ConfigurationError: If a run is in progress there, or the lock's file can't be made.
    """
    path = directory.parent / f".{directory.name}.lock"
    with ExitStack() as resources:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = resources.enter_context(path.open("a+b", buffering=0))
        except OSError as error:
            raise ConfigurationError(
                f"{path}, which guards {directory} against a second run, can't be written "
                f"({reason(error)}): make it writable, or {alternative}"
            ) from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "an unnamed process"
            raise ConfigurationError(
                f"another run is in progress in {directory} ({holder}): stop it, or {alternative}"
            ) from error
        except OSError as error:  # a file system without locks
            log.warning("%s can't be guarded against a second run (%s)", directory, reason(error))
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield

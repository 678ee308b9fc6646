"""Writing checkpoints, with retries when the disk is full."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L

from interstack.errors import CheckpointError, InterstackError
from interstack.utils.atomic import link_whole
from interstack.utils.disk import reason, write_deferred
from interstack.utils.ranks import Agreement

log = logging.getLogger(__name__)

LAST = "last.ckpt"

ATTEMPTS = 20
"""Attempts at a write that must succeed because the run ends."""
PAUSE_SECONDS = 30.0
"""Seconds between two attempts."""


class CheckpointWriter:
    """Writes checkpoints into a directory; every rank has to make the same calls.

    Args:
        directory: Directory of the checkpoints.
        agreement: Agreement of the ranks on failures.
    """

    def __init__(self, directory: Path, agreement: Agreement) -> None:
        self.directory = directory
        self._agreement = agreement

    @property
    def last(self) -> Path:
        """Path of the newest checkpoint."""
        return self.directory / LAST

    def save(self, trainer: L.Trainer, name: str = LAST) -> bool:
        """Write a checkpoint and make it the last one; a failure leaves the last good one.

        Returns:
            Whether it was written, as far as this rank knows: rank zero writes.
        """
        failure = self._write(trainer, self.directory / name)
        if failure is not None:
            log.warning(
                "step %d: the checkpoint can't be written (%s): training continues, tries again "
                "later and keeps the last good checkpoint",
                trainer.global_step,
                failure,
            )
        return failure is None

    def save_surely(self, trainer: L.Trainer, name: str = LAST) -> None:
        """Write the last checkpoint of a run; wait if the disk is full.

        Raises:
            CheckpointError: If it can't be written.
        """
        path = self.directory / name
        failed, why = self._retry(lambda: self._write(trainer, path), "its checkpoint")
        if failed:
            raise CheckpointError(
                f"{path} can't be written ({why or 'another rank says why'}): free space on its "
                "disk and give the same command with --ckpt_path last, which continues from the "
                "last good checkpoint"
            )

    def finish_records(self) -> None:
        """Write the run's files that are deferred for lack of space; wait if the disk is full.

        Raises:
            InterstackError: If they can't be written.
        """
        failed, why = self._retry(_write_deferred, "a part of its records")
        if failed:
            raise InterstackError(
                f"the last part of the run's records can't be written "
                f"({why or 'another rank says why'}): free space; the run is finished and in "
                f"{self.last}, and the same command with --ckpt_path last writes its student"
            )

    def _retry(self, write: Callable[[], str | None], what: str) -> tuple[bool, str | None]:
        """Write until it succeeds on all ranks, or all attempts are used.

        Args:
            write: Return why the write failed, or None.
            what: What is written, for the warning.

        Returns:
            Whether it failed on any rank, and why on this one.
        """
        failed, failure = True, None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS)
            failure = write()
            (failed,) = self._agreement.any([failure is not None])
            if not failed:
                break
            if failure is not None and not attempt:
                log.warning(
                    "the run ends, but %s can't be written (%s): waiting %.0f minutes for space",
                    what,
                    failure,
                    ATTEMPTS * PAUSE_SECONDS / 60,
                )
        return failed, failure

    def _write(self, trainer: L.Trainer, path: Path) -> str | None:
        """Return why the write failed, or None."""
        for logger in trainer.loggers:
            logger.save()  # what was logged before a checkpoint is not logged again after it
        write_deferred()
        trainer.save_checkpoint(path, weights_only=False)
        failure: OSError | None = getattr(trainer.strategy.checkpoint_io, "failure", None)
        if failure is None and path != self.last and trainer.is_global_zero:
            try:
                link_whole(path, self.last)
            except OSError as error:
                failure = error
        return None if failure is None else reason(failure)


def _write_deferred() -> str | None:
    """Return why deferred files can't be written, or None."""
    waiting = write_deferred()
    return ", ".join(f"{path}: {why}" for path, why in sorted(waiting.items())) or None

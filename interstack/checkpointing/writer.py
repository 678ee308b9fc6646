"""Writing a run's checkpoints, and what to do where a disk does not take them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L

from interstack.errors import CheckpointError, InterstackError
from interstack.utils.atomic import link_whole
from interstack.utils.disk import reason, write_deferred
from interstack.utils.ranks import Agreement

log = logging.getLogger(__name__)

LAST = "last.ckpt"

ATTEMPTS = 20
PAUSE_SECONDS = 30.0
"""What must be saved, because the run ends, is tried so often before it is given up."""


class CheckpointWriter:
    """Writes checkpoints into a directory; every rank has to make the same calls.

    Args:
        directory: Where they go.
        agreement: How the ranks agree.
    """

    def __init__(self, directory: Path, agreement: Agreement) -> None:
        self.directory = directory
        self._agreement = agreement

    @property
    def last(self) -> Path:
        """Where the newest checkpoint is."""
        return self.directory / LAST

    def save(self, trainer: L.Trainer, name: str = LAST) -> bool:
        """Write a checkpoint and make it the last one.

        Returns:
            Whether it was written, as far as this rank knows: rank zero writes. If it was not, the
            last good one is untouched.
        """
        failure = self._write(trainer, self.directory / name)
        if failure is not None:
            log.warning(
                "step %d: the checkpoint can't be written (%s); training goes on and tries again "
                "later, and the last good one is still there",
                trainer.global_step,
                failure,
            )
        return failure is None

    def save_surely(self, trainer: L.Trainer, name: str = LAST) -> None:
        """Write a checkpoint that nothing comes after; wait a while for a disk that is full.

        Raises:
            CheckpointError: If it can't be written.
        """
        found: list[str] = []

        def write() -> str | None:
            failure = self._write(trainer, self.directory / name)
            found.append(failure or "another rank says why")
            return failure

        if not self._tried(write, "its checkpoint"):
            raise CheckpointError(
                f"{self.directory / name} can't be written ({found[-1]}): free space on its disk "
                "and give the same command with --ckpt_path last, which goes on from the last good "
                "checkpoint, which is untouched"
            )

    def finish_records(self) -> None:
        """Write the run's files that are still waiting for space, now that nothing comes after.

        Raises:
            InterstackError: If they can't be written.
        """

        def write() -> str | None:
            waiting = write_deferred()
            return None if not waiting else _listed(waiting)

        if not self._tried(write, "a part of its records"):
            waiting = _listed(write_deferred()) or "on another rank, which says more"
            raise InterstackError(
                f"the last part of the run's records can't be written ({waiting}): free space; the "
                f"run is finished and in {self.last}, and the same command with --ckpt_path last "
                "writes its student"
            )

    def _tried(self, write: Callable[[], str | None], what: str) -> bool:
        """Try until it is done on all ranks, or the patience is over.

        Args:
            write: Returns why it can't be done, or None.
            what: The thing, for the warning.

        Returns:
            Whether it is done.
        """
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS)
            failure = write()
            (failed,) = self._agreement.any([failure is not None])
            if not failed:
                return True
            if failure is not None and not attempt:
                log.warning(
                    "the run ends, but %s can't be written (%s): waiting %.0f minutes for space",
                    what,
                    failure,
                    ATTEMPTS * PAUSE_SECONDS / 60,
                )
        return False

    def _write(self, trainer: L.Trainer, path: Path) -> str | None:
        """Return why it can't be done, or None."""
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


def _listed(waiting: Mapping[Path, str]) -> str:
    return ", ".join(f"{path}: {why}" for path, why in sorted(waiting.items()))

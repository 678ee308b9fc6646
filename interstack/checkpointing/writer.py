"""Writing a run's checkpoints, and what to do where a disk does not take them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import lightning as L

from interstack.checkpointing.agreement import Agreement
from interstack.checkpointing.atomic import link_whole
from interstack.errors import CheckpointError

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
        for attempt in range(ATTEMPTS):
            failure = self._write(trainer, self.directory / name)
            (failed,) = self._agreement.any([failure is not None])
            if not failed:
                return
            if failure is not None and attempt == 0:
                log.warning(
                    "the run ends, but its checkpoint can't be written (%s): waiting %.0f minutes "
                    "for space",
                    failure,
                    ATTEMPTS * PAUSE_SECONDS / 60,
                )
            time.sleep(PAUSE_SECONDS)
        raise CheckpointError(
            f"{self.directory / name} can't be written: free space on its disk and go on from the "
            "last good checkpoint, which is untouched"
        )

    def _write(self, trainer: L.Trainer, path: Path) -> str | None:
        """Return why it can't be done, or None."""
        for logger in trainer.loggers:
            logger.save()  # what was logged before a checkpoint is not logged again after it
        trainer.save_checkpoint(path, weights_only=False)
        failure: OSError | None = getattr(trainer.strategy.checkpoint_io, "failure", None)
        if failure is None and path != self.last and trainer.is_global_zero:
            try:
                link_whole(path, self.last)
            except OSError as error:
                failure = error
        return None if failure is None else failure.strerror or str(failure)

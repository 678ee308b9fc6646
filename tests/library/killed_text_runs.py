"""Runs of the text transformer of docs/library.md that are killed; run as a script.

Arguments: a directory, and the steps after which runs are killed, one run each.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import lightning as L

from tests.library.library_page import definitions


class KillAfter(L.Callback):
    """Kills the process after so many steps, without a chance to tidy up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """Kill it."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(directory: Path, steps: list[int]) -> None:
    """Let a child run and be killed for each step, in its directory."""
    page = definitions()
    for step in steps:
        child = os.fork()
        if child == 0:
            os.chdir(directory / str(step))
            L.seed_everything(0)
            page["fit"](page["TextModule"](), KillAfter(step))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(each) for each in sys.argv[2:]])

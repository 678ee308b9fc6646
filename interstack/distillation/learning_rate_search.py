"""Lightning's search for a learning rate, ``LearningRateFinder``, within a run of ours."""

from __future__ import annotations

from typing import Final

import lightning as L
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner.lr_finder import _LRCallback, _LRFinder

from interstack.errors import ConfigurationError
from interstack.growth.callback import callbacks_of

FEWEST_STEPS: Final = 13
"""Of a search: Lightning skips the first ten and the last, and compares the losses of two."""


def searches_learning_rate(trainer: L.Trainer) -> bool:
    """Return whether the steps that are done now belong to a search and not to the run.

    A search puts a callback of its own in the place of all others, a schedule of rising rates on
    the optimizer, and runs the training loop before ``on_fit_start`` of the module.
    """
    return any(isinstance(callback, _LRCallback) for callback in callbacks_of(trainer))


def check_rate_was_found(trainer: L.Trainer, found: float | None) -> None:
    """Stop a run whose search has ended without a rate: it would train with that of the settings.

    Args:
        trainer: About to start its run, after a search if there is one.
        found: What the search has set.

    Raises:
        ConfigurationError: In that case, with the steps that it took.
    """
    for callback in callbacks_of(trainer):
        if not isinstance(callback, LearningRateFinder) or found is not None:
            continue
        search = callback.optimal_lr
        if isinstance(search, _LRFinder):  # None: there was none, as in fast_dev_run
            steps = len(search.results["loss"])
            raise ConfigurationError(
                f"trainer.callbacks: LearningRateFinder ended after {steps} steps, too few to find "
                f"a learning rate, which takes {FEWEST_STEPS} with a finite loss: lower its max_lr "
                "where the loss has risen, give trainer.max_epochs or data that last so long, or "
                "remove it and set model.optimizer.learning_rate"
            )

"""Lightning's search for a learning rate, ``LearningRateFinder``, within a run of ours."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.tuner.lr_finder import _LRCallback

from interstack.growth.callback import callbacks_of


def searches_learning_rate(trainer: L.Trainer) -> bool:
    """Return whether the steps that are done now belong to a search and not to the run.

    A search puts a callback of its own in the place of all others, a schedule of rising rates on
    the optimizer, and runs the training loop before ``on_fit_start`` of the module.
    """
    return any(isinstance(callback, _LRCallback) for callback in callbacks_of(trainer))

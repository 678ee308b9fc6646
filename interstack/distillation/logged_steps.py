"""Which steps Lightning gives its loggers."""

from __future__ import annotations

import lightning as L


def step_is_logged(trainer: L.Trainer) -> bool:
    """Tell whether the loggers will be given the optimizer step that begins, or goes on.

    Keeping a figure costs Lightning a third of a millisecond, so that what nobody would see of the
    other steps is not kept.
    """
    every: int = vars(trainer)["log_every_n_steps"]  # set by Lightning without a declaration
    return every > 0 and (trainer.global_step + 1) % every == 0

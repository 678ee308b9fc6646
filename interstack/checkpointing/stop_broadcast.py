"""Lightning's question, at each step of each rank, whether rank 0 has received SIGTERM."""

from __future__ import annotations

from typing import Any

import lightning as L


def spare_stop_broadcast(trainer: L.Trainer) -> None:
    """Let a Trainer not ask, because the ranks agree on signals over their processors.

    It asks by a broadcast between the devices, and waits at once for the answer: for all that each
    device has still to do. Its answer would always be no: while a run trains, the signal is
    noted by `StopRequest`, and Lightning's handler, which sets what is asked for, is replaced.

    Args:
        trainer: One whose ranks agree by `Agreement` at every step.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = _nothing


def _nothing() -> None:
    """Nothing to ask."""

"""A point of a run: what it is made of, where it is read, when it is due."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import Final

import lightning as L
import torch

from interstack.tracking.step_clock import PARTS
from interstack.tracking.totals import Totals

AUDIO_HOURS: Final = "progress/audio_hours"
WALL_CLOCK: Final = "progress/wall_clock_hours"
PETAFLOPS: Final = "progress/training_pflops"
AXES: Final = (AUDIO_HOURS, WALL_CLOCK, PETAFLOPS)
"""What every point can be read against beside ``trainer/global_step``: audio trained on, padding
excluded; time in training; 10¹⁵ floating-point operations of training."""
POINT_METRICS: Final = (
    "train/stage",
    "train/grad_norm",
    "speed/audio_seconds_per_second",
    "speed/step_seconds",
    *(f"split/{part}" for part in PARTS),
    "memory/peak_mebibytes",
    "data/padding",
)
"""What a point has beside losses, learning rate and depth, which the module logs."""
_HOUR: Final = 3600.0


def axes_of(totals: Totals) -> dict[str, float]:
    """Return where a run is on the axes."""
    return {
        AUDIO_HOURS: totals.audio_seconds / _HOUR,
        WALL_CLOCK: totals.training_seconds / _HOUR,
        PETAFLOPS: totals.flops / 1e15,
    }


def point_figures(
    since: Totals,
    steps: int,
    parts: Mapping[str, float],
    stage: int,
    gradient_norm: torch.Tensor | None,
    device: torch.device,
) -> dict[str, float]:
    """Return a point's figures, named as in ``POINT_METRICS``; waits for the device.

    Args:
        since: What has come since the last point.
        steps: Optimizer steps of that.
        parts: Seconds of the parts of the step that was looked at.
        stage: Its number.
        gradient_norm: Before clipping; None where there was no gradient.
        device: Whose memory is told.
    """
    seconds = max(since.training_seconds, 1e-9)
    padding = 1 - since.audio_seconds / since.padded_seconds if since.padded_seconds else 0.0
    return {
        "train/stage": float(stage),
        "train/grad_norm": 0.0 if gradient_norm is None else float(gradient_norm),
        "speed/audio_seconds_per_second": since.audio_seconds / seconds,
        "speed/step_seconds": seconds / max(1, steps),
        **{f"split/{part}": taken for part, taken in parts.items()},
        "memory/peak_mebibytes": _peak_mebibytes(device),
        "data/padding": padding,
    }


def point_is_due(trainer: L.Trainer) -> bool:
    """Tell whether Lightning's loggers will be given the step that begins now."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
    every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined] # set, but not declared
    return every > 0 and step % every == 0


def _peak_mebibytes(device: torch.device) -> float:
    """Return the most memory in use so far: of the GPU's tensors, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

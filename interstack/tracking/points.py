"""A point of a run: what it is made of, and where it is read."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from interstack.models.student import Student
from interstack.tracking.lineage import block_names
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
"""What a point has beside losses, learning rate and depth, which the module logs, and the norms of
the layers' gradients, whose names go by the lineage."""
_HOUR: Final = 3600.0


def axes_of(totals: Totals) -> dict[str, float]:
    """Return where a run is on the axes."""
    return {
        AUDIO_HOURS: totals.audio_seconds / _HOUR,
        WALL_CLOCK: totals.training_seconds / _HOUR,
        PETAFLOPS: totals.flops / 1e15,
    }


def loss_metrics(teacher_taps: Sequence[int]) -> list[str]:
    """Return the names under which the module logs losses, learning rate and depth."""
    losses = ["loss", *(f"loss_tap_{tap}" for tap in teacher_taps)]
    names = [f"{split}/{loss}" for split in ("train", "val") for loss in losses]
    return [*names, "train/learning_rate", "train/depth"]


def layer_metrics(lineage: Sequence[int]) -> list[str]:
    """Return the names of the layers' gradient norms, bottom first: by block and place.

    A layer's number changes as others are put below it; its block and its place there do not.
    """
    places = (name.split(".") for name in block_names(lineage))
    return [f"grad_norm/block_{block}_place_{place}" for block, place in places]


def gradient_norms(student: Student) -> Tensor:
    """Return the norm of each layer's gradients, bottom first, (depth,); nothing waits for it."""
    return torch.stack(
        [
            torch.nn.utils.get_total_norm(
                [each.grad for each in layer.parameters() if each.grad is not None]
            )
            for layer in student.layers
        ]
    )


def point_figures(
    since: Totals,
    steps: int,
    parts: Mapping[str, float],
    stage: int,
    gradient_norm: Tensor | None,
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


def _peak_mebibytes(device: torch.device) -> float:
    """Return the most memory in use so far: of the GPU's tensors, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

"""What a logged step has: names and values of its metrics, and the totals of the run."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from typing import Any, Final, Self

import torch
from torch import Tensor

from interstack.distillation.module import Distillation
from interstack.models.student import Student
from interstack.tracking.flops import optimizer_flops, training_flops
from interstack.tracking.lineage import block_positions
from interstack.tracking.meters import SpikeMeter
from interstack.tracking.stage_records import StageRecord
from interstack.tracking.stages import StageRecorder
from interstack.tracking.step_timer import PARTS

AUDIO_HOURS: Final = "progress/audio_hours"
WALL_CLOCK: Final = "progress/wall_clock_hours"
PETAFLOPS: Final = "progress/training_pflops"
AXES: Final = (AUDIO_HOURS, WALL_CLOCK, PETAFLOPS)
"""What every point can be drawn against beside ``trainer/global_step``: audio trained on, padding
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
"""What a point has beside `loss_metrics`, which the module logs, and `layer_metrics`."""
_HOUR: Final = 3600.0


def loss_metrics(teacher_taps: Sequence[int]) -> list[str]:
    """Return the names under which the module logs losses, learning rate and depth."""
    losses = ["loss", *(f"loss_tap_{tap}" for tap in teacher_taps)]
    names = [f"{split}/{loss}" for split in ("train", "val") for loss in losses]
    return [*names, "train/learning_rate", "train/depth"]


def layer_metrics(lineage: Sequence[int]) -> list[str]:
    """Return the names of the layers' gradient norms, bottom first: by block and place.

    A layer's number changes as others are put below it; its block and its place there do not.
    """
    return [f"grad_norm/block_{block}_place_{place}" for block, place in block_positions(lineage)]


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


@dataclass(frozen=True)
class Totals:
    """Sums over a run.

    Attributes:
        audio_seconds: Audio trained on, padding excluded.
        padded_seconds: The same with the padding.
        training_seconds: Wall-clock of training, growth included and validation excluded.
        flops: Floating-point operations of training.
    """

    audio_seconds: float = 0.0
    padded_seconds: float = 0.0
    training_seconds: float = 0.0
    flops: float = 0.0

    def __sub__(self, other: Totals) -> Totals:
        """Return the sums since another moment of the run."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Totals(*(now - then for now, then in pairs))

    @property
    def axes(self) -> dict[str, float]:
        """Where the run is on the `AXES`."""
        return {
            AUDIO_HOURS: self.audio_seconds / _HOUR,
            WALL_CLOCK: self.training_seconds / _HOUR,
            PETAFLOPS: self.flops / 1e15,
        }


def totals_of(
    stages: Sequence[StageRecord],
    flops_at: Callable[[int], float],
    optimizer_flops_at: Callable[[int], float],
) -> Totals:
    """Return the sums over a run's stages.

    Args:
        stages: As far as they are read.
        flops_at: Returns the operations of training on a second of audio at a depth, padding
            included.
        optimizer_flops_at: Returns the operations of the optimizer in one of its steps at a depth.
    """
    return Totals(
        sum(stage.audio_seconds for stage in stages),
        sum(stage.padded_seconds for stage in stages),
        sum(stage.training_seconds for stage in stages),
        sum(
            stage.padded_seconds * flops_at(stage.depth)
            + stage.steps * optimizer_flops_at(stage.depth)
            for stage in stages
        ),
    )


class RunMeters:
    """Totals of a run and the last growth step's spike; a resumed run continues them.

    Attributes:
        totals: Audio, time and arithmetic of the run, as of the last reading.
        spike: What the last growth step did to the training loss, as of the last reading.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self.spike = SpikeMeter()
        self._losses: list[Tensor] = []
        self._taken = Totals()  # what `take_since` has returned, in all
        self._steps_since = 0

    def add_step(self, loss: Tensor | None) -> None:
        """Count an optimizer step, and keep its loss, which stays on the device."""
        self._steps_since += 1
        if loss is not None:
            self._losses.append(loss)

    def read(self, recorder: StageRecorder, module: Distillation) -> None:
        """Bring everything up to date; waits for the device."""
        recorder.read()
        self.totals = totals_of(
            recorder.stages, partial(training_flops, module), partial(optimizer_flops, module)
        )
        losses, self._losses = self._losses, []
        for loss in torch.stack(losses).tolist() if losses else ():
            self.spike.add(loss)

    def take_since(self) -> tuple[Totals, int]:
        """Return the totals since the last call, and the optimizer steps."""
        since, self._taken = self.totals - self._taken, self.totals
        steps, self._steps_since = self._steps_since, 0
        return since, steps

    def state_dict(self) -> dict[str, Any]:
        """Return as primitives what the stages do not hold, as of the last reading."""
        return {
            "taken": asdict(self._taken),
            "steps_since": self._steps_since,
            "spike": self.spike.state_dict(),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the meters of a state."""
        meters = cls()
        meters._taken = Totals(**state.get("taken", {}))  # missing in older checkpoints
        meters.spike = SpikeMeter.of_state(state["spike"])
        meters._steps_since = state["steps_since"]
        return meters


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
        since: Totals since the last point.
        steps: Optimizer steps since then.
        parts: Seconds of the parts of the last step.
        stage: Number of the stage.
        gradient_norm: Before clipping; None where there was no gradient.
        device: Where the run computes.
    """
    seconds = max(since.training_seconds, 1e-9)
    padding = 1 - since.audio_seconds / since.padded_seconds if since.padded_seconds else 0.0
    return {
        "train/stage": float(stage),
        "train/grad_norm": 0.0 if gradient_norm is None else float(gradient_norm),
        "speed/audio_seconds_per_second": since.audio_seconds / seconds,
        "speed/step_seconds": seconds / max(1, steps),
        **{f"split/{part}": duration for part, duration in parts.items()},
        "memory/peak_mebibytes": _peak_mebibytes(device),
        "data/padding": padding,
    }


def _peak_mebibytes(device: torch.device) -> float:
    """Return the most memory in use so far: of the GPU's tensors, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

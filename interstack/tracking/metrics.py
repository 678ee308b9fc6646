"""A point of a run: totals over ranks and cuts, arithmetic done, and where they are read."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Self

import torch
from torch import Tensor

from interstack.distillation.module import Distillation
from interstack.distillation.muon import newton_schulz_flops
from interstack.models.student import Student
from interstack.models.teacher import Teacher
from interstack.planning.costs import (
    encoder_macs,
    frame_rate,
    front_end_macs,
    gigamacs_of,
    layer_matrices,
)
from interstack.tracking.meters import SpikeMeter
from interstack.tracking.stage_records import StageRecord, block_names
from interstack.tracking.stages import StageRecorder
from interstack.tracking.step_timer import PARTS

_WITH_BACKWARD: Final = 3
"""Of what is trained: a forward pass, and two like it for the gradients of inputs and weights."""


def training_flops(
    student: Student,
    teacher: Teacher | None,
    depth: int,
    seconds: float = 10.0,
    *,
    extracts_features: bool = False,
) -> float:
    """Return the floating-point operations of training on a second of audio, padding included.

    A multiply-accumulate is two. Norms and activations are left out: they are next to nothing. So
    is the optimizer, which goes by steps: see ``optimizer_flops``.

    Args:
        student: The student.
        teacher: The teacher that computes its targets; None where they are cached.
        depth: Encoder layers of the student; not those that it has now, if need be.
        seconds: Length of the utterances, on which attention's share depends.
        extracts_features: Whether a frozen front end of the student's own is run.
    """
    config: Any = student.config
    heads = len(student.teacher_taps) * config.hidden_size * student.teacher_width
    trained = encoder_macs(config, depth, seconds) + frame_rate(config) * heads
    total = _WITH_BACKWARD * trained
    if not student.freeze_front_end:
        total += _WITH_BACKWARD * front_end_macs(config)
    elif extracts_features:
        total += front_end_macs(config)
    if teacher is not None:
        total += 1e9 * sum(gigamacs_of(teacher, seconds))
    return float(2 * total)


def step_flops(module: Distillation, depth: int) -> float:
    """Return the ``training_flops`` of what a module trains, with the teacher that it has.

    Args:
        module: The module, after its setup.
        depth: Encoder layers of its student; not those that it has now, if need be.
    """
    teacher = module.teacher if isinstance(module.teacher, Teacher) else None
    return training_flops(
        module.student, teacher, depth, extracts_features=module.extracts_features
    )


def optimizer_flops(module: Distillation, depth: int) -> float:
    """Return the floating-point operations of Muon's iteration in an optimizer step; 0 under AdamW.

    They are counted once, though each rank of a run repeats them.

    Args:
        module: The module, after its setup.
        depth: Encoder layers of its student; not those that it has now, if need be.
    """
    if module.optimizer_config.kind != "muon":
        return 0.0
    matrices = layer_matrices(module.student.layers[0])
    return depth * sum(newton_schulz_flops(*each.shape) for each in matrices)


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
        """Return what has come since another moment of the run."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Totals(*(mine - theirs for mine, theirs in pairs))

    def state_dict(self) -> dict[str, Any]:
        """Return it as primitives."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the sums that a state holds."""
        return cls(**state)


def totals_of(
    stages: Sequence[StageRecord],
    flops_at: Callable[[int], float],
    optimizer_flops_at: Callable[[int], float],
) -> Totals:
    """Add up a run's stages.

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
    """Reads from the device only when it is asked to; a resumed run goes on counting.

    Attributes:
        totals: Audio, time and arithmetic of the run, as of the last reading.
        spike: What the last growth did to the training loss, as of the last reading.
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
            recorder.stages, partial(step_flops, module), partial(optimizer_flops, module)
        )
        losses, self._losses = self._losses, []
        for loss in torch.stack(losses).tolist() if losses else ():
            self.spike.add(loss)

    def take_since(self) -> tuple[Totals, int]:
        """Return what has come since the last call, and the optimizer steps that it took."""
        since, self._taken = self.totals - self._taken, self.totals
        steps, self._steps_since = self._steps_since, 0
        return since, steps

    def state_dict(self) -> dict[str, Any]:
        """Return as primitives what the stages do not tell, as of the last reading."""
        return {
            "taken": self._taken.state_dict(),
            "steps_since": self._steps_since,
            "spike": self.spike.state_dict(),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Self:
        """Return the meters that a state is of."""
        meters = cls()
        meters._taken = Totals.of_state(state.get("taken", {}))  # older checkpoints have none
        meters.spike = SpikeMeter.of_state(state["spike"])
        meters._steps_since = state["steps_since"]
        return meters


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

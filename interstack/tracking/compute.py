"""The arithmetic of training, by the models' configurations alone."""

from __future__ import annotations

from typing import Any, Final

from interstack.distillation.module import Distillation
from interstack.distillation.muon import newton_schulz_flops
from interstack.models.student import Student
from interstack.models.teacher import Teacher
from interstack.planning.costs import (
    encoder_macs,
    frame_rate,
    front_end_macs,
    layer_matrices,
    teacher_gigamacs,
)

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
        macs = teacher_gigamacs(
            teacher.config, teacher.taps[-1], seconds, pad_to_30s=teacher.pad_to_30s
        )
        total += 1e9 * sum(macs)
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

"""Floating-point operations of training, by depth: a multiply-accumulate is two."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from interstack.constants import SAMPLE_RATE
from interstack.distillation.module import Distillation
from interstack.distillation.muon import newton_schulz_flops
from interstack.models.flops import forward_macs, teacher_macs
from interstack.models.front_end import frame_hop
from interstack.models.teacher import Teacher

_WITH_BACKWARD: Final = 3
"""Of what is trained: a forward pass, and two like it for the gradients of inputs and weights."""


def training_flops(module: Distillation, depth: int, seconds: float = 10.0) -> float:
    """Return the operations of training on a second of audio, padding included.

    Norms and activations are left out: they are next to nothing. So is the optimizer, which goes
    by steps: see ``optimizer_flops``.

    Args:
        module: After its setup; without its teacher where targets are cached.
        depth: Encoder layers of the student, which may differ from those that it has now.
        seconds: Length of the utterances, on which the cost of attention depends.
    """
    student, teacher = module.student, module.teacher
    config: Any = student.config
    heads = len(student.teacher_taps) * config.hidden_size * student.teacher_width
    macs = forward_macs(config, depth, seconds)
    total = _WITH_BACKWARD * (macs.encoder + heads * SAMPLE_RATE / frame_hop(config))
    if not student.freeze_front_end:
        total += _WITH_BACKWARD * macs.front_end
    elif module.extracts_features:
        total += macs.front_end
    if isinstance(teacher, Teacher):
        total += sum(teacher_macs(teacher, seconds))
    return float(2 * total)


def optimizer_flops(module: Distillation, depth: int) -> float:
    """Return the operations of Muon's iteration in an optimizer step; 0 under AdamW.

    They are counted once, though each rank of a run repeats them.

    Args:
        module: After its setup.
        depth: Encoder layers of the student, which may differ from those that it has now.
    """
    if module.optimizer_config.kind != "muon":
        return 0.0
    matrices = layer_matrices(module.student.layers[0])
    return depth * sum(newton_schulz_flops(*each.shape) for each in matrices)


def layer_matrices(layers: nn.Module) -> list[nn.Parameter]:
    """Return what ``kind: muon`` leaves to Muon: the matrices of one encoder layer or several."""
    return [each for each in layers.parameters() if each.ndim == 2]

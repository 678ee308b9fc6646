"""What models cost by their configurations alone: parameters, memory, multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from interstack.constants import SAMPLE_RATE
from interstack.distillation.muon import newton_schulz_flops
from interstack.distillation.optimizer import OptimizerKind
from interstack.models.config import StudentConfig, student_hubert_config
from interstack.models.flops import forward_macs
from interstack.models.front_end import frame_hop
from interstack.models.student import Student
from interstack.tracking.flops import layer_matrices

_MEBIBYTE: Final = 2**20


@dataclass(frozen=True)
class DepthCosts:
    """The costs of a student at one depth.

    Attributes:
        depth: Encoder layers.
        num_parameters: Of the ``HubertModel``.
        num_trained: Parameters that are trained, distillation heads included.
        gigamacs_per_second: Multiply-accumulates of a forward pass for a second of audio, in 10⁹.
        optimizer_mebibytes: The optimizer's state in fp32: AdamW's two moments; under Muon one
            momentum for each of the layers' matrices, and two moments for the rest.
        optimizer_gigaflops: Floating-point operations of Muon's iteration in an optimizer step, in
            10⁹; 0 under AdamW, whose arithmetic is negligible.
        weights_mebibytes: Weights and gradients in fp32.
    """

    depth: int
    num_parameters: int
    num_trained: int
    gigamacs_per_second: float
    optimizer_mebibytes: float
    optimizer_gigaflops: float
    weights_mebibytes: float


def student_costs(
    student: StudentConfig,
    depth: int,
    pretrained_config: Any,  # noqa: ANN401, one of several families'
    num_taps: int,
    teacher_width: int,
    seconds: float,
    optimizer: OptimizerKind = "adamw",
) -> DepthCosts:
    """Return the costs of a student at a depth; nothing is allocated.

    Args:
        student: Its settings.
        depth: Encoder layers.
        pretrained_config: The transformers configuration of the model whose front end is copied or
            shared.
        num_taps: Distillation heads.
        teacher_width: Channels of their output.
        seconds: Length of the utterances, on which the cost of attention depends.
        optimizer: Its optimizer.
    """
    own = student.front_end == "own"
    config = student_hubert_config(student, depth, None if own else pretrained_config)
    with torch.device("meta"):
        shape = Student(
            config,
            tuple(range(1, num_taps + 1)),
            teacher_width,
            freeze_front_end=student.front_end == "shared",
        )
    trained = sum(each.numel() for each in shape.parameters() if each.requires_grad)
    computes = student.front_end != "shared" or student.front_end_source is not None
    front_end, macs = forward_macs(config, depth, seconds)
    if computes:
        macs += front_end
    macs += num_taps * config.hidden_size * teacher_width * SAMPLE_RATE / frame_hop(config)
    muons = layer_matrices(shape.layers) if optimizer == "muon" else []
    state = 2 * trained - sum(each.numel() for each in muons)
    all_weights = sum(each.numel() for each in shape.parameters())
    return DepthCosts(
        depth,
        shape.num_parameters(),
        trained,
        macs / 1e9,
        4 * state / _MEBIBYTE,
        sum(newton_schulz_flops(*each.shape) for each in muons) / 1e9,
        4 * (all_weights + trained) / _MEBIBYTE,
    )

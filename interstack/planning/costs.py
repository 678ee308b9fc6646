"""What models cost by their configurations alone: parameters, memory, multiply-accumulates."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from interstack.constants import SAMPLE_RATE
from interstack.distillation.muon import newton_schulz_flops
from interstack.distillation.optimizer import OptimizerKind
from interstack.models.config import StudentConfig, student_hubert_config
from interstack.models.student import Student
from interstack.models.teacher import Teacher

_MEBIBYTE = 2**20


@dataclass(frozen=True)
class DepthCosts:
    """What a student of some depth costs.

    Attributes:
        depth: Encoder layers.
        num_parameters: Of the ``HubertModel``.
        num_trained: Parameters that are trained, distillation heads included.
        gigamacs_per_second: Multiply-accumulates of a forward pass for a second of audio, in 10⁹.
        optimizer_mebibytes: The optimizer's state in fp32: AdamW's two moments; under Muon one
            momentum for each of the layers' matrices, and two moments for the rest.
        optimizer_gigaflops: Floating-point operations of Muon's iteration in an optimizer step, in
            10⁹; 0 under AdamW, whose arithmetic is next to nothing.
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
    """Return what a student costs at a depth; nothing is allocated.

    Args:
        student: Its settings.
        depth: Encoder layers.
        pretrained_config: The transformers configuration of the model whose front end is copied or
            shared.
        num_taps: Distillation heads.
        teacher_width: Channels of their output.
        seconds: Length of the utterances, on which attention's share depends.
        optimizer: What trains it.
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
    macs = front_end_macs(config) if computes else 0.0
    macs += encoder_macs(config, depth, seconds)
    macs += num_taps * config.hidden_size * teacher_width * frame_rate(config)
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


def layer_matrices(layers: nn.Module) -> list[nn.Parameter]:
    """Return what ``kind: muon`` leaves to Muon: the matrices of encoder layers.

    Args:
        layers: A layer, or several.
    """
    return [each for each in layers.parameters() if each.ndim == 2]


def teacher_gigamacs(
    config: Any,  # noqa: ANN401, as above
    num_layers: int,
    seconds: float,
    *,
    pad_to_30s: bool = False,
) -> tuple[float, float]:
    """Return a teacher's front end and the rest of it, in 10⁹ multiply-accumulates a second.

    Args:
        config: Its transformers configuration.
        num_layers: Layers that are run.
        seconds: Length of the utterances.
        pad_to_30s: Whether it is a Whisper that pads each of them.
    """
    if pad_to_30s:
        padded = config.max_source_positions / 50.0
        front_end, layers = teacher_gigamacs(config, num_layers, padded)
        return front_end * padded / seconds, layers * padded / seconds
    if config.model_type == "whisper":
        width, mels = config.d_model, config.num_mel_bins
        convolutions = 100.0 * 3 * mels * width + 50.0 * 3 * width * width
        layers = num_layers * _layer_macs(width, config.encoder_ffn_dim, 50.0, seconds)
        return convolutions / 1e9, layers / 1e9
    return front_end_macs(config) / 1e9, encoder_macs(config, num_layers, seconds) / 1e9


def gigamacs_of(teacher: Teacher, seconds: float) -> tuple[float, float]:
    """Return ``teacher_gigamacs`` of a loaded teacher; of a family of one's own, all in one.

    Args:
        teacher: The teacher.
        seconds: Length of the utterances.
    """
    if teacher.family is None:
        config, layers = teacher.config, teacher.taps[-1]
        return teacher_gigamacs(config, layers, seconds, pad_to_30s=teacher.pad_to_30s)
    return 0.0, _counted_gigamacs(teacher, seconds)


@lru_cache(maxsize=1)
def _counted_gigamacs(teacher: Teacher, seconds: float) -> float:
    """Count the multiply-accumulates of a second of an utterance of silence, in 10⁹."""
    samples = min(int(seconds * SAMPLE_RATE), teacher.max_samples or sys.maxsize)
    device = next(teacher.parameters()).device
    waveforms = torch.zeros(1, samples, device=device)
    with FlopCounterMode(display=False) as counter:
        teacher(waveforms, torch.tensor([samples], device=device))
    return float(counter.get_total_flops()) / 2e9 * SAMPLE_RATE / samples


def frame_rate(config: Any) -> float:  # noqa: ANN401, as above
    """Return the frames a second of a waveform model."""
    return SAMPLE_RATE / int(prod(config.conv_stride))


def front_end_macs(config: Any) -> float:  # noqa: ANN401, as above
    """Return a convolutional front end's multiply-accumulates for a second of audio.

    An output of a convolution takes kernel × input channels for each output channel.
    """
    total, rate, channels = 0.0, float(SAMPLE_RATE), 1
    shapes = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    for width, kernel, stride in shapes:
        rate /= stride
        total += rate * kernel * channels * width
        channels = width
    return total


def encoder_macs(config: Any, num_layers: int, seconds: float) -> float:  # noqa: ANN401, as above
    """Return the same of feature projection, positional convolution and encoder layers."""
    width, rate = config.hidden_size, frame_rate(config)
    projection = config.conv_dim[-1] * width
    group = width // config.num_conv_pos_embedding_groups
    stacked = getattr(config, "num_conv_pos_embeddings", 128)
    if config.model_type == "data2vec-audio":
        stacked = config.num_conv_pos_embeddings * config.conv_pos_kernel_size
    positions = stacked * group * width
    layers = num_layers * _layer_macs(width, config.intermediate_size, rate, seconds)
    return float(rate * (projection + positions) + layers)


def _layer_macs(width: int, intermediate: int, rate: float, seconds: float) -> float:
    """Return a transformer layer's: four projections, two of the network, scores and their sum."""
    attention = 2 * width * rate * seconds
    return rate * (4 * width * width + 2 * width * intermediate + attention)

"""What models cost by their configurations alone: parameters, memory, multiply-accumulates."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from math import prod
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from interstack.constants import SAMPLE_RATE
from interstack.distillation.muon import newton_schulz_flops
from interstack.distillation.optimizer import OptimizerKind
from interstack.models.config import StudentConfig, student_hubert_config
from interstack.models.student import Student

_MEBIBYTE: Final = 2**20
_WHISPER_FRAME_RATE: Final = 50.0
_FRONT_ENDS: Final = (".feature_extractor", ".conv1", ".conv2")
"""Ends of the names of front ends: of waveform models, and Whisper's two convolutions."""


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
        seconds: Length of the utterances, on which the cost of attention depends.
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
    front_end, macs = forward_macs(config, depth, seconds)
    if computes:
        macs += front_end
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


def frame_rate(config: Any) -> float:  # noqa: ANN401, as above
    """Return the frames a second of a waveform model."""
    return SAMPLE_RATE / int(prod(config.conv_stride))


class ForwardMacs(NamedTuple):
    """Multiply-accumulates of a forward pass, for a second of audio.

    Attributes:
        front_end: Of the convolutions that read waveform or log-mel.
        encoder: Of all that comes after them.
    """

    front_end: float
    encoder: float

    @property
    def gigamacs(self) -> float:
        """Both, in 10⁹."""
        return (self.front_end + self.encoder) / 1e9


def forward_macs(
    config: Any,  # noqa: ANN401, as above
    num_layers: int,
    seconds: float,
    *,
    pad_to_30s: bool = False,
) -> ForwardMacs:
    """Return what torch's counter finds in a model of a configuration; nothing is allocated.

    Args:
        config: The transformers configuration.
        num_layers: Encoder layers that are run.
        seconds: Length of the utterance, on which the cost of attention depends.
        pad_to_30s: Whether it is a Whisper that pads each utterance to its number of positions.
    """
    length = config.max_source_positions / _WHISPER_FRAME_RATE if pad_to_30s else seconds
    counted = _count_macs(config.to_json_string(use_diff=False), num_layers, length)
    return ForwardMacs(*(macs / seconds for macs in counted))


@functools.cache
def _count_macs(settings: str, num_layers: int, seconds: float) -> tuple[float, float]:
    """Count the multiply-accumulates of an utterance, in the front end and after it."""
    config: Any = AutoConfig.for_model(**json.loads(settings))
    config._attn_implementation = "eager"  # the counter does not see into fused attention
    with (
        torch.random.fork_rng(devices=[]),  # initialising draws numbers on the meta device too
        torch.device("meta"),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        if config.model_type == "whisper":
            config.encoder_layers = num_layers
            config.max_source_positions = round(_WHISPER_FRAME_RATE * seconds)
            network: nn.Module = AutoModel.from_config(config, dtype=torch.float32).encoder
            audio = torch.empty(1, config.num_mel_bins, 2 * config.max_source_positions)
        else:
            config.num_hidden_layers = num_layers
            network = AutoModel.from_config(config, dtype=torch.float32)
            audio = torch.empty(1, round(seconds * SAMPLE_RATE))
        network.eval()(audio)
    flops = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    front_end = sum(each for name, each in flops.items() if name.endswith(_FRONT_ENDS))
    return front_end / 2, (flops["Global"] - front_end) / 2

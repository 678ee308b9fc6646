"""The arithmetic of a forward pass, by a model's configuration alone."""

from __future__ import annotations

import functools
import json
import sys
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from interstack.constants import SAMPLE_RATE
from interstack.models.teacher import Teacher

_WHISPER_FRAME_RATE: Final = 50.0
_FRONT_ENDS: Final = (".feature_extractor", ".conv1", ".conv2")
"""Ends of the names of front ends: of waveform models, and Whisper's two convolutions."""


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
    config: Any,  # noqa: ANN401, one of several families'
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


def teacher_macs(teacher: Teacher, seconds: float) -> ForwardMacs:
    """Return the same of a teacher up to its deepest tap; of a family of one's own, all in one.

    Args:
        teacher: The teacher.
        seconds: Length of the utterance.
    """
    if teacher.family is None:
        depth = teacher.taps[-1]
        return forward_macs(teacher.config, depth, seconds, pad_to_30s=teacher.pad_to_30s)
    return ForwardMacs(0.0, _run_macs(teacher, seconds))


@functools.lru_cache(maxsize=1)
def _run_macs(teacher: Teacher, seconds: float) -> float:
    """Count the multiply-accumulates of an utterance of silence, for a second of it."""
    samples = min(int(seconds * SAMPLE_RATE), teacher.max_samples or sys.maxsize)
    device = next(teacher.parameters()).device
    waveforms = torch.zeros(1, samples, device=device)
    with FlopCounterMode(display=False) as counter:
        teacher(waveforms, torch.tensor([samples], device=device))
    return float(counter.get_total_flops()) / 2 * SAMPLE_RATE / samples


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

"""What a probe listens to: frozen models, untrained copies of them, and plain log-mel."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from interstack.errors import ConfigurationError
from interstack.models.pretrained import Source
from interstack.models.teacher import Teacher
from interstack.models.whisper import HOP, LogMel

LOG_MEL: Final = "log-mel"
RANDOM: Final = "random"
NUM_MEL_BINS: Final = 80


class Upstream(Protocol):
    """A frozen representation of speech."""

    name: str
    """What the user called it."""
    first_frame_centre: float
    """Sample at the centre of frame 0."""
    frame_hop: int
    """Samples from one frame's centre to the next one's."""

    def hidden_states(self, waveform: Tensor) -> Tensor:
        """Represent one utterance.

        Args:
            waveform: (num_samples,) float32 in [-1, 1] at 16 kHz.

        Returns:
            (frames, layers, width) float32.
        """


class LogMelUpstream:
    """80 log-mel bins, 25 ms windows every 10 ms, two of them stacked to a frame of 20 ms.

    Each bin is brought to zero mean and unit variance over the utterance.

    Args:
        name: what the user called it.
        context: frames of 20 ms to stack on either side; what lies past the ends repeats them.
    """

    def __init__(self, name: str = LOG_MEL, context: int = 0) -> None:
        self.name = name
        self.context = context
        # Whisper's own windows are centred on multiples of the hop.
        self.first_frame_centre = HOP / 2
        self.frame_hop = 2 * HOP
        self._log_mel = LogMel(NUM_MEL_BINS)

    @torch.no_grad()
    def hidden_states(self, waveform: Tensor) -> Tensor:
        """See `Upstream`: one layer, 160 x (2 context + 1) wide."""
        mel, _ = self._log_mel(waveform[None], torch.tensor([len(waveform)]))
        mel = mel[0].T[: mel.shape[-1] // 2 * 2]
        mel = (mel - mel.mean(0)) / (mel.std(0, correction=0) + 1e-5)
        frames = mel.reshape(-1, 2 * NUM_MEL_BINS)
        around = functional.pad(frames.T, (self.context, self.context), mode="replicate")
        return around.unfold(1, 2 * self.context + 1, 1).permute(1, 2, 0).reshape(len(frames), 1, -1)

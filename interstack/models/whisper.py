"""Whisper's encoder on utterances of any length: log-mel in torch, with or without 30 s of padding.

An utterance is processed as if silence (zeros) followed it. Convolutions and attention see its own
frames alone, or, as OpenAI's own pipeline has it, those of the silence up to 30 s as well. Either
way its hidden states do not depend on its batch.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from interstack.constants import SAMPLE_RATE
from interstack.errors import DataError, TeacherError
from interstack.models.encoder import attended_frames, attention_mask
from interstack.models.front_end import frame_mask

WINDOW: Final = 400
"""Samples of one spectrum, 25 ms."""
HOP: Final = 160
"""Samples from one log-mel frame to the next, 10 ms."""
FRAME_HOP: Final = 2 * HOP
"""Samples from one hidden frame to the next, 20 ms: the second convolution halves the rate."""


class LogMel(nn.Module):
    """Log-mel spectrogram as transformers' `WhisperFeatureExtractor` computes it, on any device.

    Args:
        num_mel_bins: 80, or 128 for Whisper large-v3.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, num_mel_bins: int) -> None:
        super().__init__()
        filters = mel_filter_bank(
            num_frequency_bins=WINDOW // 2 + 1,
            num_mel_filters=num_mel_bins,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        transposed = torch.from_numpy(filters).float().T.contiguous()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", transposed, persistent=False)

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spectrogram of each utterance as if zeros followed it.

        Args:
            waveforms: (batch, max_num_samples) float32, padded on the right.
            num_samples: (batch,) valid samples of each.

        Returns:
            (batch, num_mel_bins, frames), zero past an utterance's end, and the (batch,) valid
            frames.

        Raises:
            DataError: If the whole batch is shorter than one window.
        """
        if waveforms.shape[1] < WINDOW:
            raise DataError(
                f"the longest utterance of a batch has {waveforms.shape[1]} samples, but Whisper "
                f"needs {WINDOW}: skip shorter audio"
            )
        waveforms = waveforms.masked_fill(~frame_mask(num_samples, waveforms.shape[1]), 0.0)
        # As in the feature extractor, whose mirror at the end the padding to 30 s keeps off speech.
        waveforms = functional.pad(waveforms, (WINDOW // 2, 0), mode="reflect")
        waveforms = functional.pad(waveforms, (0, WINDOW // 2))
        spectrum = torch.stft(
            waveforms, WINDOW, HOP, window=self.window, center=False, return_complex=True
        )
        power = spectrum[..., :-1].abs().square()
        log_mel = (self.filters @ power).clamp(min=1e-10).log10()

        num_frames = torch.div(num_samples, HOP, rounding_mode="floor")
        padding = ~frame_mask(num_frames, log_mel.shape[-1])[:, None]
        loudest = log_mel.masked_fill(padding, -10.0).amax(dim=(1, 2), keepdim=True)
        log_mel = (torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0
        return log_mel.masked_fill(padding, 0.0), num_frames


class WhisperBody(nn.Module):
    """Whisper's encoder and its log-mel front end.

    Args:
        encoder: transformers' encoder; its layers above `num_layers` are dropped.
        num_layers: Layers to keep and run.
        pad_to_30s: Let each utterance attend to the silence that follows it up to the encoder's
            last position (30 s in every published model), as it was trained.
    """

    def __init__(
        self, encoder: WhisperEncoder, num_layers: int, *, pad_to_30s: bool = False
    ) -> None:
        super().__init__()
        self.pad_to_30s = pad_to_30s
        self.log_mel = LogMel(encoder.config.num_mel_bins)
        self.max_samples: int = encoder.config.max_source_positions * FRAME_HOP
        self.is_whole = num_layers == len(encoder.layers)
        encoder.layers = encoder.layers[:num_layers]
        self.encoder = encoder

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[None, list[Tensor], Tensor]:
        """Run the kept layers.

        Args:
            waveforms: (batch, max_num_samples) float32, padded on the right.
            num_samples: (batch,) valid samples of each.

        Returns:
            No features; hidden states 0 to num_layers, (batch, frames, width) each, of which that
            of the whole encoder's last layer has gone through its final norm, as in transformers;
            the (batch,) valid frames.

        Raises:
            TeacherError: If an utterance is longer than the encoder's positions.
            DataError: If the whole batch is shorter than one window.
        """
        encoder = self.encoder
        waveforms = self._within_positions(waveforms, num_samples)
        longest = -(-(waveforms.shape[1] // HOP) // 2)
        attended_samples = num_samples
        if self.pad_to_30s:
            silence = self.max_samples - waveforms.shape[1]
            waveforms = waveforms.masked_fill(~frame_mask(num_samples, waveforms.shape[1]), 0.0)
            waveforms = functional.pad(waveforms, (0, silence))
            attended_samples = torch.full_like(num_samples, self.max_samples)
        mel, num_mel_frames = self.log_mel(waveforms, attended_samples)
        mel = mel.to(encoder.conv1.weight.dtype)
        padding = ~frame_mask(num_mel_frames, mel.shape[-1])[:, None]
        hidden = functional.gelu(encoder.conv1(mel)).masked_fill(padding, 0.0)
        hidden = functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]

        num_frames = -(-torch.div(num_samples, HOP, rounding_mode="floor") // 2)
        attended_to = -(-num_mel_frames // 2)
        attended = attended_frames(frame_mask(attended_to, hidden.shape[1]))
        layer_mask = attention_mask(encoder.config, hidden, attended)
        hidden_states = [hidden]
        for layer in encoder.layers:
            hidden_states.append(layer(hidden_states[-1], layer_mask))
        if self.is_whole:
            hidden_states[-1] = encoder.layer_norm(hidden_states[-1])
        return None, [each[:, :longest] for each in hidden_states], num_frames

    def _within_positions(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        # The padded length is known without waiting for a GPU, so that it is checked first.
        if waveforms.shape[1] <= self.max_samples:
            return waveforms
        too_long = int((num_samples > self.max_samples).sum())
        if too_long:
            limit = self.max_samples / SAMPLE_RATE
            longest = int(num_samples.max()) / SAMPLE_RATE
            raise TeacherError(
                f"{too_long} of a batch's {len(num_samples)} utterances are longer than the "
                f"{limit:g} s that this Whisper teacher has positions for (the longest: "
                f"{longest:.2f} s): crop longer audio to {limit:g} s, or skip it"
            )
        return waveforms[:, : self.max_samples]

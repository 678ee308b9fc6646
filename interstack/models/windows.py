"""Hidden states of an utterance that is too long to be computed at once, window by window.

Exact up to rounding, as if the whole utterance were computed at once:

- the number of frames, and where each lies: windows start at multiples of the frame hop;
- the waveform's normalisation, and the statistics of a front end's group norm over time, which are
  those of the whole utterance: a pause is not amplified to the loudness of speech;
- the front end's features, and the positional convolution of every frame that is kept wherever the
  context covers half of its kernel.

Approximate: self-attention, and so everything above it, sees the frames of one window
and not the whole utterance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from interstack.errors import ConfigurationError
from interstack.models.encoder import encode, project
from interstack.models.front_end import (
    Moments,
    centre,
    extract_features,
    frame_hop,
    has_norm_over_time,
    normalise_waveform,
    num_frames,
    receptive_field,
    utterance_moments,
)

_CONTEXT: Final = 1 / 8
"""Context on either side, as a fraction of the window."""
_MOST_CONTEXT: Final = 1 / 4
"""The same where the positional convolution needs more."""


class Window(NamedTuple):
    """Frames that are computed together, and those of them that are kept.

    Attributes:
        begin: First frame that is computed.
        end: The one after the last.
        first: First frame that is kept.
        last: The one after the last.
    """

    begin: int
    end: int
    first: int
    last: int


def plan_windows(frames: int, window: int, context: int) -> list[Window]:
    """Return overlapping windows that cover an utterance.

    All windows are of one length and as evenly spaced as whole frames allow. Two neighbours share
    twice the context or more, and each frame is kept from the window in which it lies further from
    the edge: it has at least `context` frames on either side there, or the utterance ends.

    Args:
        frames: Of the utterance.
        window: Frames of a window; an utterance that fits one is one.
        context: Frames on either side of what is kept, less than half a window.
    """
    if frames <= window:
        return [Window(0, frames, 0, frames)]
    spare = frames - window
    steps = -(-spare // (window - 2 * context))
    begins = [number * spare // steps for number in range(steps + 1)]
    cuts = [(left + window + right) // 2 for left, right in pairwise(begins)]
    return [
        Window(begin, begin + window, first, last)
        for begin, first, last in zip(begins, [0, *cuts], [*cuts, frames], strict=True)
    ]


class EncoderParts(Protocol):
    """A speech encoder over waveforms: the student's model, or a teacher's body."""

    config: Any

    @property
    def feature_extractor(self) -> nn.Module:
        """Convolutions, from waveforms to features."""

    @property
    def feature_projection(self) -> nn.Module:
        """From features to the encoder's width."""

    @property
    def encoder(self) -> Any:  # noqa: ANN401, of one of several families
        """The encoder, with its ``layers``."""


class WindowedOutput:
    """Hidden states of one long utterance, computed while they are iterated over.

    Iterating yields tensors (depth + 1, frames, width) that follow one another in time and together
    have `num_frames` frames; no more than one window is computed at a time.

    Args:
        model: In eval mode.
        waveform: (num_samples,), 16 kHz in [-1, 1], on the model's device.
        window_samples: Samples of a window at most.
        normalises_waveform: Bring the whole waveform to zero mean and unit variance first.
        precision: Makes the context to compute in, as for mixed precision.

    Raises:
        ConfigurationError: If a window has no frame.
    """

    def __init__(
        self,
        model: EncoderParts,
        waveform: Tensor,
        window_samples: int,
        *,
        normalises_waveform: bool,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        config = model.config
        window = int(num_frames(config, torch.tensor(window_samples)))
        if not window:
            raise ConfigurationError(
                f"windows of {window_samples} samples (data.validation_batch_seconds, or "
                "--window-seconds of features) are shorter than the front end's receptive "
                f"field of {receptive_field(config)}: give longer ones"
            )
        self.num_frames = int(num_frames(config, torch.tensor(len(waveform))))
        self.width: int = config.hidden_size
        self.num_hidden_states = len(model.encoder.layers) + 1
        self.windows = plan_windows(
            self.num_frames, window, context_frames(window, positional_kernel(config))
        )
        self._model = model
        self._normalises_waveform = normalises_waveform
        self._waveform = waveform
        self._window_samples = window_samples
        self._precision = precision

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the hidden states of one window after another."""
        waveform, moments = self._prepared()
        for window in self.windows:
            yield self._piece(window, waveform, moments)

    @torch.no_grad()
    def _prepared(self) -> tuple[Tensor, Moments | None]:
        """Return the waveform normalised as a whole, and the whole's statistics."""
        waveform = self._waveform[None]
        lengths = torch.tensor([len(self._waveform)], device=waveform.device)
        if self._normalises_waveform:
            waveform = normalise_waveform(waveform, lengths)
        extractor = self._model.feature_extractor
        if not has_norm_over_time(extractor):
            return waveform[0], None
        waveform = centre(waveform, lengths)
        with self._precision():
            return waveform[0], utterance_moments(extractor, waveform[0], self._window_samples)

    @torch.no_grad()
    def _piece(self, window: Window, waveform: Tensor, moments: Moments | None) -> Tensor:
        """Return what is kept of a window, (depth + 1, frames, width)."""
        model, hop = self._model, frame_hop(self._model.config)
        begin, end = window.begin * hop, (window.end - 1) * hop
        part = waveform[None, begin : end + receptive_field(model.config)]
        lengths = torch.tensor([part.shape[1]], device=part.device)
        with self._precision():
            features = extract_features(model.feature_extractor, part, lengths, moments)
            mask = torch.ones(1, features.shape[-1], dtype=torch.bool, device=part.device)
            projected = project(model.feature_projection, features)
            hidden_states = encode(model.encoder, projected, mask)
        kept = slice(window.first - window.begin, window.last - window.begin)
        return torch.stack([hidden[0, kept] for hidden in hidden_states])


def positional_kernel(config: Any) -> int:  # noqa: ANN401, of one of several families
    """Return the frames that the positional convolution of one frame sees.

    One convolution, or, in data2vec-audio, several stacked ones.
    """
    layers: int = config.num_conv_pos_embeddings
    if config.model_type == "data2vec-audio":
        kernel: int = config.conv_pos_kernel_size
        return layers * (kernel - 1) + 1
    return layers


def context_frames(window: int, positional_kernel: int) -> int:
    """Return the frames of context on either side of what is kept of a window.

    An eighth of the window, and half the positional convolution's kernel where a quarter allows it.

    Args:
        window: Frames of a window.
        positional_kernel: Kernel of the positional convolution, in frames.
    """
    wanted = max(round(window * _CONTEXT), positional_kernel // 2)
    return min(wanted, int(window * _MOST_CONTEXT))

"""From samples to features, so that an utterance's result does not depend on its batch.

The convolutional front ends of transformers' HuBERT, wav2vec 2.0, WavLM and data2vec-audio are
run layer by layer. Base models hold a group norm after the first convolution whose statistics run
over time: transformers lets padding into them, here they come from each utterance's valid frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from interstack.errors import DataError


class ConvConfig(Protocol):
    """The part of a transformers config that says how samples become frames."""

    @property
    def conv_kernel(self) -> Sequence[int]:
        """Kernel of each convolution."""

    @property
    def conv_stride(self) -> Sequence[int]:
        """Stride of each convolution."""


class _HasFrontEnd(Protocol):
    @property
    def feature_extractor(self) -> nn.Module: ...


class FrontEndWeights:
    """Gives the weights of its ``feature_extractor``, from which a student's are loaded."""

    def front_end_state(self: _HasFrontEnd) -> dict[str, Tensor]:
        """Return the convolutional front end's weights; raises as ``feature_extractor``."""
        return dict(self.feature_extractor.state_dict())


class Moments(NamedTuple):
    """Statistics of the first convolution's output over an utterance, for a group norm over time.

    Attributes:
        mean: (1, channels) float32.
        variance: (1, channels) float32, without Bessel's correction.
    """

    mean: Tensor
    variance: Tensor


def num_frames(config: ConvConfig, num_samples: Tensor) -> Tensor:
    """Return the frames that the front end makes of so many samples.

    Args:
        config: transformers config of a waveform model.
        num_samples: Integer tensor of any shape.

    Returns:
        Integer tensor of the same shape; 0 where the audio is shorter than the receptive field.
    """
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        num_samples = _conv_length(num_samples, kernel, stride)
    return num_samples


def receptive_field(config: ConvConfig) -> int:
    """Return the samples of one frame: 400, or 25 ms, in every published model."""
    return _receptive_field(zip(config.conv_kernel, config.conv_stride, strict=True))


def frame_hop(config: ConvConfig) -> int:
    """Return the samples from a frame's centre to the next: 320, or 20 ms, in published models."""
    return prod(config.conv_stride)


def frame_mask(num_frames: Tensor, max_frames: int) -> Tensor:
    """Return which frames are an utterance's own.

    Args:
        num_frames: (batch,) valid frames of each utterance.
        max_frames: Frames of the padded batch.

    Returns:
        (batch, max_frames) bool, True = valid.
    """
    return torch.arange(max_frames, device=num_frames.device) < num_frames[:, None]


def normalise_waveform(waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Return waveforms of zero mean and unit variance over the valid samples; padding is zero.

    The formula is that of transformers' `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm`.

    Args:
        waveforms: (batch, max_num_samples), padded on the right.
        num_samples: (batch,) valid samples of each.

    Returns:
        (batch, max_num_samples) float32.
    """
    centred = centre(waveforms, num_samples)
    variance = centred.square().sum(1, keepdim=True) / num_samples.clamp(min=1)[:, None]
    return centred / (variance + 1e-7).sqrt()


def extract_features(
    feature_extractor: nn.Module,
    waveforms: Tensor,
    num_samples: Tensor,
    moments: Moments | None = None,
) -> Tensor:
    """Run transformers' convolutional front end without letting padding into its statistics.

    On unpadded input the result equals `feature_extractor(waveforms)`.

    Args:
        feature_extractor: That of a HuBERT, wav2vec 2.0, WavLM or data2vec-audio model.
        waveforms: (batch, max_num_samples), padded on the right.
        num_samples: (batch,) valid samples of each.
        moments: Statistics for a group norm over time, where the waveform is a part of a longer
            one, which has been centred as a whole; see `utterance_moments`. None: its own.

    Returns:
        (batch, channels, frames). Frames past an utterance's end are finite and meaningless.

    Raises:
        DataError: If the whole batch is shorter than the front end's receptive field.
    """
    # The families share these layers' attributes, but no type.
    layers: list[Any] = list(cast(nn.ModuleList, feature_extractor.conv_layers))
    shapes = [(layer.conv.kernel_size[0], layer.conv.stride[0]) for layer in layers]
    needed = _receptive_field(shapes)
    if waveforms.shape[1] < needed:
        raise DataError(
            f"the longest utterance of a batch has {waveforms.shape[1]} samples, but the front "
            f"end needs {needed} to make one frame: skip shorter audio"
        )
    if has_norm_over_time(feature_extractor) and moments is None:
        # Its result stays the same, and its variance can't cancel in a quiet offset recording.
        waveforms = centre(waveforms, num_samples).to(waveforms.dtype)
    hidden = waveforms[:, None]
    lengths = num_samples
    for layer, (kernel, stride) in zip(layers, shapes, strict=True):
        lengths = _conv_length(lengths, kernel, stride)
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            hidden = _norm_over_time_(norm, layer.conv(hidden), lengths, moments)
            hidden = layer.activation(hidden)
        else:
            hidden = layer(hidden)
    return hidden


def has_norm_over_time(feature_extractor: nn.Module) -> bool:
    """Return whether a group norm over time follows the first convolution, as in base models."""
    layers: Any = feature_extractor.conv_layers
    return isinstance(getattr(layers[0], "layer_norm", None), nn.GroupNorm)


def utterance_moments(feature_extractor: nn.Module, waveform: Tensor, max_samples: int) -> Moments:
    """Measure the first convolution's output over a whole utterance, part by part.

    Args:
        feature_extractor: One with a norm over time.
        waveform: (num_samples,), centred; at least as long as the first kernel.
        max_samples: Samples that are convolved at a time, at most (but a kernel's at least).
    """
    conv: Any = cast(Any, feature_extractor.conv_layers)[0].conv
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    count = (len(waveform) - kernel) // stride + 1
    step = max(1, (max_samples - kernel) // stride + 1)
    sums, squares = [], []
    for first in range(0, count, step):
        last = min(first + step, count) - 1
        part = conv(waveform[None, None, first * stride : last * stride + kernel])[0]
        sums.append(part.sum(-1, dtype=torch.float32))
        squares.append(torch.linalg.vector_norm(part, dim=-1, dtype=torch.float32).square())
    # Few numbers, in float64: an hour has eleven million frames here.
    mean = torch.stack(sums).cpu().double().sum(0, keepdim=True) / count
    power = torch.stack(squares).cpu().double().sum(0, keepdim=True) / count
    variance = (power - mean.square()).clamp(min=0.0)
    return Moments(*(each.float().to(waveform.device) for each in (mean, variance)))


def centre(waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Return float32 waveforms of zero mean over the valid samples, and zeros after them."""
    padding = ~frame_mask(num_samples, waveforms.shape[1])
    waveforms = waveforms.float().masked_fill(padding, 0.0)
    mean = waveforms.sum(1, keepdim=True) / num_samples.clamp(min=1)[:, None]
    return (waveforms - mean).masked_fill(padding, 0.0)


def _norm_over_time_(
    norm: nn.GroupNorm, hidden: Tensor, num_frames: Tensor, moments: Moments | None
) -> Tensor:
    """Apply a group norm, one group a channel, with statistics over the valid frames.

    Statistics are float32. The first convolution's output is by far the largest tensor of a model,
    so it is masked in place and its moments are taken in one pass, without a copy: this costs
    little more than torch's own group norm. `hidden` is overwritten.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.masked_fill_(~frame_mask(num_frames, hidden.shape[-1])[:, None], 0.0)
        if moments is None:
            count = num_frames.clamp(min=1)[:, None].float()
            mean = hidden.sum(-1, dtype=torch.float32) / count
            power = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32).square() / count
            variance = (power - mean.square()).clamp(min=0.0)
        else:
            mean, variance = moments
        scale = (variance + norm.eps).rsqrt() * norm.weight.float()
        shift = norm.bias.float() - mean * scale
        return torch.addcmul(shift[..., None], hidden, scale[..., None]).to(hidden.dtype)


def _conv_length(length: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the output length of an unpadded convolution, never below 0."""
    return (torch.div(length - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)


def _receptive_field(kernels_and_strides: Iterable[tuple[int, int]]) -> int:
    field, hop = 1, 1
    for kernel, stride in kernels_and_strides:
        field += (kernel - 1) * hop
        hop *= stride
    return field

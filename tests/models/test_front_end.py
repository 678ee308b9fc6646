"""The front end: frame arithmetic, parity with transformers, independence of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import HubertConfig, Wav2Vec2FeatureExtractor

from interstack.errors import DataError
from interstack.models.front_end import (
    extract_features,
    frame_hop,
    frame_mask,
    normalise_waveform,
    num_frames,
    receptive_field,
)
from tests.models.families import WAVEFORM_MODELS, build, pad, read_speech

CONFIG = HubertConfig()
ALL_FAMILIES = pytest.mark.parametrize("family", list(WAVEFORM_MODELS))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), max_size=4), st.integers(1, 200))
def test_frames_are_counted_as_the_convolutions_make_them(
    shapes: list[tuple[int, int]], length: int
) -> None:
    """Whatever the kernels and strides, and 0 where nothing fits."""
    config = HubertConfig(
        conv_kernel=[kernel for kernel, _ in shapes],
        conv_stride=[stride for _, stride in shapes],
        conv_dim=[1] * len(shapes),
    )
    hidden = torch.zeros(1, 1, length)
    for kernel, stride in shapes:
        if hidden.shape[-1] < kernel:
            hidden = hidden[..., :0]
            break
        hidden = nn.functional.conv1d(hidden, torch.ones(1, 1, kernel), stride=stride)
    assert num_frames(config, torch.tensor(length)).item() == hidden.shape[-1]


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (719, 1), (720, 2)])
def test_published_front_ends_see_25_ms_every_20_ms(samples: int, frames: int) -> None:
    """Receptive field, hop and the first frames agree."""
    assert receptive_field(CONFIG) == 400
    assert frame_hop(CONFIG) == 320
    assert num_frames(CONFIG, torch.tensor([samples])).tolist() == [frames]


def test_the_mask_is_true_on_an_utterances_own_frames() -> None:
    """One row an utterance, valid frames first."""
    expected = [[True, True, False], [False, False, False], [True, True, True]]
    assert frame_mask(torch.tensor([2, 0, 3]), 3).tolist() == expected


def test_normalised_waveforms_are_those_of_the_feature_extractor() -> None:
    """Each utterance over its own samples, and silence stays silent."""
    utterances = read_speech(1.5, 0.5)
    waveforms, num_samples = pad(utterances)
    normalised = normalise_waveform(waveforms, num_samples)
    extractor: Any = Wav2Vec2FeatureExtractor  # untyped
    reference = extractor(do_normalize=True)
    for utterance, row in zip(utterances, normalised, strict=True):
        expected = reference(utterance.numpy(), sampling_rate=16_000).input_values[0]
        torch.testing.assert_close(row[: len(utterance)], torch.as_tensor(expected))
        assert not row[len(utterance) :].any()


@ALL_FAMILIES
def test_features_of_unpadded_speech_are_those_of_transformers(family: str) -> None:
    """Values and the gradients of every front-end weight."""
    front_end = build(family).feature_extractor
    waveforms, num_samples = pad(read_speech(1.0, 1.0))
    expected = front_end(waveforms)
    weights = list(front_end.parameters())
    probe = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), weights)

    features = extract_features(front_end, waveforms, num_samples)
    gradients = torch.autograd.grad((features * probe).sum(), weights)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * scale)


@ALL_FAMILIES
@torch.no_grad()
def test_features_of_an_utterance_do_not_depend_on_its_batch(family: str) -> None:
    """Alone, and padded to three times its length."""
    model = build(family)
    utterances = read_speech(2.4, 0.8, 1.3)
    together = extract_features(model.feature_extractor, *pad(utterances))
    for utterance, row in zip(utterances, together, strict=True):
        alone = extract_features(model.feature_extractor, *pad([utterance]))[0]
        assert alone.shape[-1] == num_frames(model.config, torch.tensor(len(utterance)))
        torch.testing.assert_close(row[:, : alone.shape[-1]], alone, rtol=0.0, atol=1e-4)


def test_the_gradient_of_an_utterance_does_not_depend_on_its_batch() -> None:
    """Neither do statistics leak backwards."""
    front_end = build("hubert-base").feature_extractor
    short, long = read_speech(0.8, 2.4)
    weights = list(front_end.parameters())

    def gradient(utterances: list[Tensor], frames: int) -> tuple[Tensor, ...]:
        features = extract_features(front_end, *pad(utterances))
        return torch.autograd.grad(features[0, :, :frames].square().sum(), weights)

    frames = int(num_frames(CONFIG, torch.tensor(len(short))))
    for padded, alone in zip(
        gradient([short, long], frames), gradient([short], frames), strict=True
    ):
        scale = alone.abs().max().item()
        torch.testing.assert_close(padded, alone, rtol=1e-3, atol=1e-4 * scale)


@torch.no_grad()
def test_a_quiet_recording_with_an_offset_keeps_its_statistics() -> None:
    """Where the mean is far above the deviation, the variance must not cancel away."""
    front_end = build("hubert-base").feature_extractor
    waveforms, num_samples = pad([0.01 * read_speech(1.0)[0] + 0.05])
    expected = front_end(waveforms)
    features = extract_features(front_end, waveforms, num_samples)
    torch.testing.assert_close(features, expected, rtol=0.0, atol=1e-4)


@torch.no_grad()
def test_autocast_keeps_the_statistics_in_float32() -> None:
    """bfloat16 convolutions stay as near to float32 as transformers' own autocast does."""
    front_end = build("hubert-base").feature_extractor
    waveforms, num_samples = pad(read_speech(2.0, 2.0))
    exact = front_end(waveforms)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = front_end(waveforms).float()
        ours = extract_features(front_end, waveforms, num_samples)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).norm() < 1.5 * (theirs - exact).norm()


@pytest.mark.parametrize("samples", [0, 5, 320])
@ALL_FAMILIES
def test_an_utterance_without_a_frame_stays_finite(family: str, samples: int) -> None:
    """It is the data's business to leave it out; it must not spoil a batch with NaN."""
    front_end = build(family).feature_extractor
    [speech] = read_speech(1.0)
    waveforms, num_samples = pad([speech, speech[:samples]])
    waveforms = normalise_waveform(waveforms, num_samples)
    features = extract_features(front_end, waveforms, num_samples)
    gradients = torch.autograd.grad(features.square().sum(), list(front_end.parameters()))
    assert all(tensor.isfinite().all() for tensor in (waveforms, features, *gradients))


def test_a_batch_shorter_than_the_receptive_field_is_refused() -> None:
    """The message has both lengths and the setting that mends it."""
    waveforms, num_samples = pad([torch.zeros(399)])
    with pytest.raises(DataError, match=r"399 samples.*needs 400.*skip shorter audio"):
        extract_features(build("hubert-base").feature_extractor, waveforms, num_samples)

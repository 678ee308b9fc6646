"""The encoder: every hidden state as in transformers, and no utterance sees its batch."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from interstack.models.encoder import encode, project
from interstack.models.front_end import frame_mask, num_frames
from tests.models.families import NUM_LAYERS, WAVEFORM_MODELS, WIDTH, build, pad, read_speech

ALL_FAMILIES = pytest.mark.parametrize("family", list(WAVEFORM_MODELS))


def full_mask(projected: Tensor) -> Tensor:
    """All frames valid."""
    return torch.ones(projected.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@ALL_FAMILIES
@torch.no_grad()
def test_hidden_states_of_unpadded_speech_are_those_of_transformers(
    family: str, attention: str
) -> None:
    """Each of them, from the encoder's input to the last layer."""
    model = build(family)
    if family.startswith("wavlm") and attention == "sdpa":
        attention = "eager"  # the only one WavLM has
    model.set_attn_implementation(attention)
    waveforms, _ = pad(read_speech(1.0, 1.0))
    expected = model(waveforms, output_hidden_states=True).hidden_states

    features = model.feature_extractor(waveforms)
    projected = project(model.feature_projection, features)
    hidden_states = encode(model.encoder, projected, full_mask(projected))
    assert len(hidden_states) == len(expected) == NUM_LAYERS + 1
    for ours, theirs in zip(hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["hubert-large", "wav2vec2-large", "wavlm-large"])
@torch.no_grad()
def test_valid_frames_of_padded_speech_are_those_of_transformers(family: str) -> None:
    """Where transformers itself masks all it has to, the padded batch agrees too."""
    model = build(family)
    waveforms, num_samples = pad(read_speech(2.0, 1.0))
    with pytest.warns(UserWarning, match="mismatched") if "wavlm" in family else nullcontext():
        expected = model(
            waveforms, frame_mask(num_samples, waveforms.shape[1]).long(), output_hidden_states=True
        ).hidden_states
    projected = project(model.feature_projection, model.feature_extractor(waveforms))
    mask = frame_mask(num_frames(model.config, num_samples), projected.shape[1])
    for ours, theirs in zip(encode(model.encoder, projected, mask), expected, strict=True):
        torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@ALL_FAMILIES
@torch.no_grad()
def test_hidden_states_of_an_utterance_do_not_depend_on_its_batch(
    family: str, attention: str
) -> None:
    """Whatever the front end left in the padding."""
    model = build(family)
    if not family.startswith("wavlm"):
        model.set_attn_implementation(attention)
    frames = torch.tensor([60, 17, 1])
    projected = torch.randn(3, 60, WIDTH)
    together = encode(model.encoder, projected, frame_mask(frames, 60))
    for row, count in enumerate(frames.tolist()):
        own = projected[row : row + 1, :count]
        alone = encode(model.encoder, own, full_mask(own))
        for padded, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(padded[row, :count], expected[0], rtol=0.0, atol=1e-4)


@ALL_FAMILIES
@torch.no_grad()
def test_only_the_layers_asked_for_are_run(family: str) -> None:
    """The hidden states up to there are the same, and no layer is bypassed."""
    encoder = build(family).encoder
    calls: list[Any] = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda module, *_: calls.append(module))
    projected = torch.randn(1, 20, WIDTH)
    everything = encode(encoder, projected, full_mask(projected))
    assert calls == list(encoder.layers)
    for count in range(NUM_LAYERS + 1):
        calls.clear()
        some = encode(encoder, projected, full_mask(projected), num_layers=count)
        assert calls == list(encoder.layers)[:count]
        for ours, expected in itertools.zip_longest(some, everything[: count + 1]):
            assert torch.equal(ours, expected)


@ALL_FAMILIES
def test_gradients_reach_every_weight_and_inputs_are_left_alone(family: str) -> None:
    """An encoder of this kind can be trained with growth and shared inputs."""
    encoder = build(family).encoder
    projected = torch.randn(2, 20, WIDTH, requires_grad=True)
    before = projected.detach().clone()
    mask = frame_mask(torch.tensor([20, 9]), 20)
    hidden_states = encode(encoder, projected, mask)
    assert torch.equal(projected, before)
    loss = torch.stack([hidden[mask].square().mean() for hidden in hidden_states]).sum()
    torch.autograd.backward(loss)
    assert projected.grad is not None
    assert projected.grad[mask].any(-1).all()
    assert not projected.grad[~mask].any()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name


@ALL_FAMILIES
@torch.no_grad()
def test_dropout_in_training_is_that_of_transformers(family: str) -> None:
    """With the same random numbers the same result, from the encoder's input on."""
    encoder = build(family).encoder.train()
    encoder.config.layerdrop = 0.0
    projected = torch.randn(2, 20, WIDTH)
    torch.manual_seed(1)
    expected = encoder(projected.clone()).last_hidden_state
    torch.manual_seed(1)
    last = encode(encoder, projected, full_mask(projected))[-1]
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


@ALL_FAMILIES
@torch.no_grad()
def test_an_utterance_without_a_frame_stays_finite(family: str) -> None:
    """No key to attend to must not mean NaN."""
    projected = torch.randn(2, 20, WIDTH)
    hidden_states = encode(build(family).encoder, projected, frame_mask(torch.tensor([20, 0]), 20))
    assert all(hidden.isfinite().all() for hidden in hidden_states)


@torch.no_grad()
def test_a_compiled_layer_is_used_as_such() -> None:
    """`layer.compile()` in place takes effect."""
    encoder = build("hubert-base").encoder
    compiled: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:  # noqa: ANN401
        compiled.append(graph)
        return graph.forward

    for layer in encoder.layers:
        layer.compile(backend=backend)
    projected = torch.randn(1, 20, WIDTH)
    encode(encoder, projected, full_mask(projected))
    assert compiled

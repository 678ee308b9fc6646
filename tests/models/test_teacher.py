"""The teacher: every family as transformers has it, cut off, frozen and told apart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from interstack.models.front_end import normalise_waveform
from interstack.models.teacher import Teacher
from tests.models.families import (
    MODELS,
    NUM_LAYERS,
    WIDTH,
    build,
    edit_json,
    edit_weights,
    pad,
    read_speech,
    save,
)

ALL_FAMILIES = pytest.mark.parametrize("family", list(MODELS))
EVERY_TAP = range(NUM_LAYERS + 1)
FeatureExtractor: Any = WhisperFeatureExtractor  # untyped


def hidden_states_of_transformers(
    family: str, waveforms: Tensor, num_samples: Tensor
) -> tuple[Tensor, ...]:
    """The reference: transformers' own preprocessing and model on unpadded utterances."""
    model = build(family)
    if family == "whisper":
        extractor = FeatureExtractor(chunk_length=1)
        mel = extractor(list(waveforms.numpy()), sampling_rate=16_000, return_tensors="pt")
        inputs, model = mel.input_features, model.encoder
    elif getattr(model.config, "feat_extract_norm", "layer") == "layer":
        inputs = normalise_waveform(waveforms, num_samples)
    else:
        inputs = waveforms
    states: tuple[Tensor, ...] = model(inputs, output_hidden_states=True).hidden_states
    return states


@ALL_FAMILIES
@torch.no_grad()
def test_hidden_states_of_unpadded_speech_are_those_of_transformers(
    family: str, tmp_path: Path
) -> None:
    """Each of them, through loading, normalisation, front end and encoder."""
    waveforms, num_samples = pad(read_speech(1.0, 1.0))
    waveforms[:, -200:] = 0.0  # Whisper's feature extractor mirrors the end of a full clip
    expected = hidden_states_of_transformers(family, waveforms, num_samples)
    output = Teacher(str(save(family, tmp_path)), EVERY_TAP)(waveforms, num_samples)
    assert len(expected) == NUM_LAYERS + 1
    for ours, theirs in zip(output.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
    assert output.num_frames.tolist() == [expected[0].shape[1]] * 2


@ALL_FAMILIES
def test_targets_of_an_utterance_do_not_depend_on_its_batch(family: str, tmp_path: Path) -> None:
    """Alone, and padded to several times its length."""
    teacher = Teacher(str(save(family, tmp_path)), EVERY_TAP)
    utterances = read_speech(1.0, 0.31, 0.105)
    together = teacher(*pad(utterances), with_features=True)
    for row, utterance in enumerate(utterances):
        alone = teacher(*pad([utterance]), with_features=True)
        frames = int(alone.num_frames)
        assert frames == together.num_frames[row] == alone.hidden_states[0].shape[1]
        for padded, expected in zip(together.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(padded[row, :frames], expected[0], rtol=0.0, atol=1e-4)
        if family != "whisper":
            torch.testing.assert_close(
                together.features[row, :, :frames], alone.features[0], rtol=0.0, atol=1e-4
            )


@ALL_FAMILIES
def test_what_lies_in_the_padding_does_not_matter(family: str, tmp_path: Path) -> None:
    """A batch whose padding is not silent gives the same targets."""
    teacher = Teacher(str(save(family, tmp_path)), EVERY_TAP)
    waveforms, num_samples = pad(read_speech(1.0, 0.31))
    expected = teacher(waveforms, num_samples)
    waveforms[1, num_samples[1] :] = 0.5
    frames = int(expected.num_frames[1])
    output = teacher(waveforms, num_samples)
    for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[1, :frames], theirs[1, :frames], rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("taps", [[0], [1], [0, 2], [1, 2]])
@ALL_FAMILIES
def test_a_cut_teacher_equals_the_full_one_at_its_taps(
    family: str, taps: list[int], tmp_path: Path
) -> None:
    """Layers above the deepest tap are gone, and nobody can tell."""
    directory = str(save(family, tmp_path))
    speech = pad(read_speech(1.0, 0.31))
    full, cut = Teacher(directory, EVERY_TAP), Teacher(directory, taps)
    everything = full(*speech).hidden_states
    some = cut(*speech).hidden_states
    assert len(some) == len(taps)
    for tap, ours in zip(taps, some, strict=True):
        assert torch.equal(ours, everything[tap])
    layers: Any = cut.body.encoder.layers
    assert len(layers) == taps[-1]
    assert (cut.num_layers, cut.width, cut.taps) == (NUM_LAYERS, WIDTH, tuple(taps))


@ALL_FAMILIES
def test_a_teacher_is_never_trained(family: str, tmp_path: Path) -> None:
    """No train mode, no dropout, no gradient."""
    teacher = Teacher(str(save(family, tmp_path)), EVERY_TAP)
    speech = pad(read_speech(1.0))
    expected = teacher(*speech).hidden_states
    assert not any(module.training for module in teacher.modules())
    torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    speech[0].requires_grad_()
    for again, before in zip(teacher(*speech).hidden_states, expected, strict=True):
        assert torch.equal(again, before)
        assert not again.requires_grad


@pytest.mark.parametrize("family", ["hubert-base", "wavlm-base", "wav2vec2-base"])
def test_weight_norm_is_computed_once(family: str, tmp_path: Path) -> None:
    """Frozen weights need no parametrisation, which would run at every step."""
    names = Teacher(str(save(family, tmp_path)), [1]).state_dict()
    assert "body.encoder.pos_conv_embed.conv.weight" in names


@ALL_FAMILIES
def test_targets_are_float32_and_blind_to_autocast(family: str, tmp_path: Path) -> None:
    """Mixed precision is the student's affair."""
    teacher = Teacher(str(save(family, tmp_path)), EVERY_TAP)
    speech = pad(read_speech(1.0, 0.31))
    expected = teacher(*speech, with_features=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = teacher(*speech, with_features=True)
    for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    assert (output.features is None) == (family == "whisper")


@ALL_FAMILIES
def test_a_bfloat16_teacher_gives_nearly_the_same_float32_targets(
    family: str, tmp_path: Path
) -> None:
    """Half precision is the teacher's own, and Whisper's log-mel stays out of it."""
    directory = str(save(family, tmp_path))
    speech = pad(read_speech(1.0, 0.31))
    exact = Teacher(directory, EVERY_TAP)(*speech)
    half = Teacher(directory, EVERY_TAP, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    output = half(*speech, with_features=True)
    assert output.features is None or output.features.dtype == torch.float32
    for ours, theirs in zip(output.hidden_states, exact.hidden_states, strict=True):
        assert ours.dtype == torch.float32
        frames = int(exact.num_frames[1])
        error = (ours - theirs)[1, :frames].norm() / theirs[1, :frames].norm()
        assert 0.0 < error < 0.05


def test_features_are_given_only_when_asked_for(tmp_path: Path) -> None:
    """They are those of the front end, which a student may copy."""
    teacher = Teacher(str(save("hubert-base", tmp_path)), [1])
    waveforms, num_samples = pad(read_speech(1.0))
    assert teacher(waveforms, num_samples).features is None
    features = teacher(waveforms, num_samples, with_features=True).features
    torch.testing.assert_close(features, teacher.feature_extractor(waveforms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "setting", "normalises"),
    [
        ("hubert-base", None, False),
        ("hubert-base", True, True),
        ("hubert-large", None, True),
        ("hubert-large", False, False),
        ("data2vec-audio", None, True),
        ("whisper", None, False),
    ],
)
def test_waveforms_are_normalised_as_the_model_was_trained(
    family: str, setting: bool | None, normalises: bool, tmp_path: Path
) -> None:
    """The preprocessor's config decides, else the kind of front end."""
    directory = save(family, tmp_path)
    if setting is not None:
        edit_json(directory / "preprocessor_config.json", do_normalize=setting)
    teacher = Teacher(str(directory), [1])
    assert teacher.normalises_waveform is normalises
    if family != "whisper":
        speech, num_samples = pad(read_speech(1.0))
        quiet = teacher(0.1 * speech, num_samples, with_features=True).features
        loud = teacher(speech, num_samples, with_features=True).features
        assert torch.allclose(quiet, loud, atol=1e-2) is normalises


def test_frames_are_where_they_say(tmp_path: Path) -> None:
    """HuBERT's first frame is centred on its receptive field, Whisper's on the first sample."""
    hubert, whisper = (
        Teacher(str(save("hubert-base", tmp_path)), [1]),
        Teacher(str(save("whisper", tmp_path)), [1]),
    )
    assert (hubert.first_frame_centre, hubert.frame_hop, hubert.max_samples) == (199.5, 320, None)
    assert (whisper.first_frame_centre, whisper.frame_hop) == (0.0, 320)
    assert whisper.max_samples == 16_000
    assert (hubert.takes_waveform, whisper.takes_waveform) == (True, False)


def test_the_fingerprint_tells_weights_apart_wherever_they_lie(tmp_path: Path) -> None:
    """Equal for a copy; another for other weights, another precision or normalisation."""
    directory = save("hubert-base", tmp_path)
    copy = shutil.copytree(directory, tmp_path / "copy")
    fingerprint = Teacher(str(directory), [2]).fingerprint()
    assert Teacher(str(copy), [1, 2]).fingerprint() == fingerprint
    assert Teacher(str(copy), [2], dtype="bfloat16").fingerprint() != fingerprint
    edit_json(copy / "preprocessor_config.json", do_normalize=True)
    assert Teacher(str(copy), [2]).fingerprint() != fingerprint

    def nudge(tensors: dict[str, Tensor]) -> None:
        tensors["encoder.layers.1.final_layer_norm.bias"] += 1e-6

    edit_weights(directory, nudge)
    assert Teacher(str(directory), [2]).fingerprint() != fingerprint


def test_the_fingerprint_is_the_same_for_any_number_of_threads() -> None:
    """A cache made with all of a machine's cores serves a run that has one of them."""
    threads, fingerprints = torch.get_num_threads(), set()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            fingerprints.add(Teacher("assets/teacher", [12]).fingerprint())
    finally:
        torch.set_num_threads(threads)
    assert len(fingerprints) == 1


def test_the_fingerprint_tells_folded_weights_apart(tmp_path: Path) -> None:
    """The positional convolution's weight is computed from two parameters: both count."""
    directory = save("hubert-base", tmp_path)
    fingerprints = {Teacher(str(directory), [2]).fingerprint()}
    for parameter in ("original0", "original1"):

        def nudge(tensors: dict[str, Tensor], parameter: str = parameter) -> None:
            tensors[f"encoder.pos_conv_embed.conv.parametrizations.weight.{parameter}"] *= 1.01

        edit_weights(directory, nudge)
        fingerprints.add(Teacher(str(directory), [2]).fingerprint())
    assert len(fingerprints) == 3

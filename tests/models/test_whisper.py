"""Whisper: its log-mel, its bounds, and the ways its encoder is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from interstack.errors import ConfigurationError, DataError, TeacherError
from interstack.evaluation.superb.upstream import TeacherUpstream
from interstack.models.config import TeacherConfig
from interstack.models.teacher import Teacher
from interstack.models.whisper import LogMel
from interstack.target_cache.manifest import CacheRecord
from tests.models.families import (
    NUM_LAYERS,
    build,
    edit_json,
    pad,
    read_speech,
    save,
    whisper_config,
)

FeatureExtractor: Any = WhisperFeatureExtractor  # untyped


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [30.0, 12.3456])
def test_log_mel_is_that_of_the_feature_extractor(num_mel_bins: int, seconds: float) -> None:
    """On a full-length clip, and on one that the feature extractor pads to 30 s."""
    pieces = torch.cat(read_speech(*[2.5] * 12))
    waveform = pieces[: int(seconds * 16_000)]
    log_mel, frames = LogMel(num_mel_bins)(*pad([waveform]))
    extractor = FeatureExtractor(feature_size=num_mel_bins)
    expected = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    assert int(frames) == log_mel.shape[-1] == len(waveform) // 160
    # Of a full clip, the last window reaches past the end: a mirror there, silence here.
    sure = int(frames) - (seconds == 30.0)
    torch.testing.assert_close(log_mel[..., :sure], expected[..., :sure], rtol=0.0, atol=1e-4)


def test_log_mel_of_an_utterance_does_not_depend_on_its_batch() -> None:
    """Its floor hangs on its own loudest frame, and past its end there is nothing."""
    quiet, loud = read_speech(0.905, 2.0)
    quiet = 0.01 * quiet
    together, frames = LogMel(80)(*pad([quiet, loud]))
    alone, _ = LogMel(80)(*pad([quiet]))
    torch.testing.assert_close(together[:1, :, : frames[0]], alone, rtol=0.0, atol=1e-5)
    assert not together[0, :, frames[0] :].any()


def test_whisper_refuses_what_exceeds_its_positions(tmp_path: Path) -> None:
    """How many and how long; the command at hand may crop by another option than `fit`."""
    teacher = Teacher(str(save("whisper", tmp_path)), [1])
    with pytest.raises(
        TeacherError, match=r"2 of a batch's 3.*1 s.*2\.00 s.*crop longer audio to 1 s"
    ):
        teacher(*pad(read_speech(1.5, 0.5, 2.0)))


def test_superb_names_what_applies_there_to_audio_that_is_too_long(tmp_path: Path) -> None:
    """None of its options crops, and `data.max_seconds` is none of them."""
    upstream = TeacherUpstream(str(save("whisper", tmp_path)))
    waveforms, num_samples = pad(read_speech(0.5, 2.0))
    speech = [waveform[:length] for waveform, length in zip(waveforms, num_samples, strict=True)]
    assert len(upstream(speech[:1])["hidden_states"]) == NUM_LAYERS + 1
    with pytest.raises(TeacherError, match=r"--upstream .* positions for 1 s.* 2\.0 s.*--tasks"):
        upstream(speech)


def test_whisper_accepts_padding_beyond_its_positions(tmp_path: Path) -> None:
    """A batch that was padded to more than its longest utterance is no error."""
    teacher = Teacher(str(save("whisper", tmp_path)), [1])
    waveforms, num_samples = pad(read_speech(1.0, 0.5))
    expected = teacher(waveforms, num_samples)
    output = teacher(torch.nn.functional.pad(waveforms, (0, 999)), num_samples)
    assert torch.equal(output.hidden_states[0], expected.hidden_states[0])


@pytest.mark.parametrize(("family", "samples"), [("whisper", 399), ("hubert-base", 399)])
def test_audio_shorter_than_a_frame_is_refused(family: str, samples: int, tmp_path: Path) -> None:
    """With the setting that mends it."""
    with pytest.raises(DataError, match=f"{samples} samples.*400.*skip shorter audio"):
        Teacher(str(save(family, tmp_path)), [1])(*pad([torch.zeros(samples)]))


def test_whisper_has_no_front_end_to_share(tmp_path: Path) -> None:
    """The student needs its own, or another teacher."""
    with pytest.raises(
        TeacherError, match=r"log-mel.*share or copy.*front_end own.*waveform teacher"
    ):
        _ = Teacher(str(save("whisper", tmp_path)), [1]).feature_extractor


def test_whisper_loads_whole_or_as_its_encoder_alone(tmp_path: Path) -> None:
    """The same encoder from each of the three ways to save it."""
    model = WhisperForConditionalGeneration(whisper_config())
    fingerprints = set()
    for name, part in {
        "generation": model,
        "model": model.model,
        "encoder": model.model.encoder,
    }.items():
        part.save_pretrained(tmp_path / name)
        edit_json(tmp_path / name / "config.json", model_type="whisper")
        fingerprints.add(Teacher(str(tmp_path / name), [NUM_LAYERS]).fingerprint())
    assert len(fingerprints) == 1


@torch.no_grad()
def test_padded_to_30_s_the_targets_are_those_of_openais_pipeline(tmp_path: Path) -> None:
    """Feature extractor and encoder of transformers, on what the feature extractor pads."""
    directory = save("whisper", tmp_path)
    (waveform,) = read_speech(0.63)
    output = Teacher(str(directory), range(NUM_LAYERS + 1), pad_to_30s=True)(*pad([waveform]))
    mel = FeatureExtractor(chunk_length=1)(
        waveform.numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_features
    states = build("whisper").encoder(mel, output_hidden_states=True).hidden_states
    frames = int(output.num_frames)
    assert frames == output.hidden_states[0].shape[1] == 32
    for ours, theirs in zip(output.hidden_states, states, strict=True):
        torch.testing.assert_close(ours, theirs[:, :frames], rtol=1e-4, atol=2e-5)
    own = Teacher(str(directory), [NUM_LAYERS])(*pad([waveform])).hidden_states[0]
    assert not torch.allclose(own, output.hidden_states[-1], atol=1e-3)


def test_padded_to_30_s_an_utterance_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """Nor on what its batch's padding holds, or on padding beyond the encoder's positions."""
    teacher = Teacher(str(save("whisper", tmp_path)), [0, NUM_LAYERS], pad_to_30s=True)
    utterances = read_speech(0.9, 0.31, 0.105)
    waveforms, num_samples = pad(utterances)
    waveforms[1, num_samples[1] :] = 0.5
    together = teacher(waveforms, num_samples)
    longer = teacher(torch.nn.functional.pad(waveforms, (0, 9_000)), num_samples)
    for row, utterance in enumerate(utterances):
        alone = teacher(*pad([utterance]))
        frames = int(alone.num_frames)
        assert frames == together.num_frames[row] == longer.num_frames[row]
        for tap, expected in enumerate(alone.hidden_states):
            for padded in (together, longer):
                torch.testing.assert_close(
                    padded.hidden_states[tap][row, :frames], expected[0], rtol=0.0, atol=1e-4
                )


def test_padding_to_30_s_is_told_apart_and_refused_for_other_families(tmp_path: Path) -> None:
    """A cache of other targets must not pass for the run's."""
    directory = str(save("whisper", tmp_path))
    prints = {Teacher(directory, [1], pad_to_30s=pads).fingerprint() for pads in (False, True)}
    assert len(prints) == 2
    with pytest.raises(TeacherError, match=r"pad_to_30s is true, .* hubert.*set it to false"):
        Teacher(str(save("hubert-base", tmp_path)), [1], pad_to_30s=True)
    record = CacheRecord.of(
        TeacherConfig(directory, (1,), pad_to_30s=True),
        Teacher(directory, [1], pad_to_30s=True),
        "float32",
        with_features=False,
    )
    record.write(tmp_path)
    read = CacheRecord.read(tmp_path)
    assert read.pad_to_30s
    read.check_teacher(TeacherConfig(directory, (1,), pad_to_30s=True), (1,))
    with pytest.raises(ConfigurationError, match="pad_to_30s was True and is False"):
        read.check_teacher(TeacherConfig(directory, (1,)), (1,))


def test_a_cache_of_before_padding_to_30_s_was_made_without(tmp_path: Path) -> None:
    """Its record does not say so."""
    directory = str(save("whisper", tmp_path))
    config = TeacherConfig(directory, (1,))
    record = CacheRecord.of(config, Teacher(directory, [1]), "float32", with_features=False)
    record.write(tmp_path)
    content = json.loads((tmp_path / "cache.json").read_text())
    del content["pad_to_30s"]
    (tmp_path / "cache.json").write_text(json.dumps(content))
    assert CacheRecord.read(tmp_path) == record

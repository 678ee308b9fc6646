"""Whisper: its log-mel, its bounds, and the ways its encoder is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import NUM_LAYERS, edit_json, pad, read_speech, save, whisper_config
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from interstack.errors import DataError, TeacherError
from interstack.evaluation.superb.upstream import TeacherUpstream
from interstack.models.teacher import Teacher
from interstack.models.whisper import LogMel

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
    with pytest.raises(DataError, match=f"{samples} samples.*400.*min_seconds"):
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

"""SoX's effects as s3prl's recipes use them, against what the program itself computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from interstack.errors import ConfigurationError, DataError
from interstack.evaluation.superb.sox_effects import apply_effects_file, load

REFERENCE = Path(__file__).parent / "sox_reference"
PLAIN = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
"""What keyword spotting and query-by-example ask for."""
TRIMMED = [*PLAIN, ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]]
"""What speaker verification asks for."""


@pytest.mark.parametrize(
    ("effects", "expected"), [(PLAIN, "pauses_gain"), (TRIMMED, "pauses_silence")]
)
def test_at_16_khz_the_effects_are_those_of_sox(effects: list[list[str]], expected: str) -> None:
    """Sample by sample, up to the reference's 24 bits: what is cut is cut at the same places."""
    waveform, rate = apply_effects_file(REFERENCE / "pauses.flac", effects)
    reference, _ = soundfile.read(REFERENCE / f"{expected}.flac", dtype="float32")
    assert rate == 16_000
    assert waveform.shape == (1, len(reference))
    torch.testing.assert_close(waveform[0], torch.from_numpy(reference), rtol=0, atol=2**-22)


def test_pauses_are_cut_indeed() -> None:
    """The clip has some that are, so that the test above means something."""
    whole, _ = apply_effects_file(REFERENCE / "pauses.flac", PLAIN)
    trimmed, _ = apply_effects_file(REFERENCE / "pauses.flac", TRIMMED)
    assert whole.shape[1] - trimmed.shape[1] > 8_000


def test_other_rates_and_channels_come_close_to_sox() -> None:
    """Two filters of like length: the difference is 40 dB below the speech."""
    waveform, rate = apply_effects_file(REFERENCE / "stereo.flac", PLAIN)
    reference, _ = soundfile.read(REFERENCE / "stereo_rate.flac", dtype="float32")
    assert rate == 16_000
    assert abs(waveform.shape[1] - len(reference)) <= 1
    length = min(waveform.shape[1], len(reference))
    error = waveform[0, :length].numpy() - reference[:length]
    assert 10 * np.log10((reference**2).sum() / (error**2).sum()) > 40


def test_audio_without_any_sound_is_cut_to_nothing(tmp_path: Path) -> None:
    """And does not run on for ever."""
    soundfile.write(tmp_path / "quiet.wav", np.full(8_000, 1e-5), 16_000)
    waveform, _ = apply_effects_file(tmp_path / "quiet.wav", TRIMMED)
    assert waveform.shape == (1, 0)


def test_audio_is_loaded_as_torchaudio_did(tmp_path: Path) -> None:
    """16-bit samples over 2^15, channels first."""
    samples = np.array([[0, 32767], [-32768, 1], [16384, -1]], dtype=np.int16)
    soundfile.write(tmp_path / "two.wav", samples, 22_050, subtype="PCM_16")
    waveform, rate = load(str(tmp_path / "two.wav"))
    assert rate == 22_050
    assert waveform.dtype == torch.float32
    assert torch.equal(waveform, torch.from_numpy(samples.T / np.float32(2**15)))


def test_an_unsupported_effect_is_named(tmp_path: Path) -> None:
    """Another effect, another use of one, a file that is none."""
    clip = REFERENCE / "pauses.flac"
    for effect in (["reverb"], ["channels", "2"], ["silence", "1", "0.1", "1%", "0", "0.1", "1%"]):
        with pytest.raises(ConfigurationError, match=effect[0]):
            apply_effects_file(clip, [effect])
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"broken\.wav"):
        load(tmp_path / "broken.wav")

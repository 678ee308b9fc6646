"""Utterances to waveforms: what is decoded, where it is cropped, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder, Utterance, read_header
from interstack.data.batch import collate
from interstack.errors import DataError
from tests.data.corpora import files_of


def _utterance(path: Path) -> Utterance:
    return read_header(path.stem, str(path), str(path))


def test_a_whole_utterance_is_the_files_samples(corpus: Path) -> None:
    """Uncropped audio at 16 kHz comes as soundfile reads it, from path and bytes alike."""
    path = files_of(corpus)[0]
    expected, _ = soundfile.read(path, dtype="float32")
    utterance = _utterance(path)
    assert utterance.num_samples == len(expected)
    assert Decoder()(utterance).numpy().tobytes() == expected.tobytes()
    in_memory = utterance._replace(audio=path.read_bytes())
    assert Decoder()(in_memory).numpy().tobytes() == expected.tobytes()


def test_crops_lie_inside_and_move_with_the_epoch(corpus: Path) -> None:
    """A crop is a stretch of the file, the same for the same seed, epoch and id alone."""
    path = files_of(corpus)[0]
    whole, _ = soundfile.read(path, dtype="float32")
    utterance = _utterance(path)
    starts = []
    for epoch in range(20):
        decoder = Decoder(max_samples=4000, epoch=epoch, seed=3)
        start, length = decoder.crop(utterance)
        assert length == 4000
        assert 0 <= start <= len(whole) - 4000
        assert decoder(utterance).numpy().tobytes() == whole[start : start + 4000].tobytes()
        assert Decoder(4000, epoch, seed=3).crop(utterance) == (start, length)
        starts.append(start)
    assert len(set(starts)) > 15
    assert Decoder(4000, epoch=0, seed=4).crop(utterance)[0] != starts[0]


def test_crops_outside_training_start_at_the_beginning(corpus: Path) -> None:
    """Validation sees the same stretch always."""
    assert Decoder(max_samples=4000).crop(_utterance(files_of(corpus)[0])) == (0, 4000)


def test_channels_are_averaged(corpus: Path, tmp_path: Path) -> None:
    """Stereo becomes mono."""
    mono, _ = soundfile.read(files_of(corpus)[0], dtype="float32")
    soundfile.write(tmp_path / "stereo.wav", np.stack([mono, 0 * mono], 1), SAMPLE_RATE, "FLOAT")
    np.testing.assert_allclose(Decoder()(_utterance(tmp_path / "stereo.wav")), mono / 2)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_other_rates_are_resampled_to_the_length_the_header_foretells(
    corpus: Path, tmp_path: Path, rate: int
) -> None:
    """Batches are planned by headers, so a resampled waveform's length must be known before."""
    samples, _ = soundfile.read(files_of(corpus)[0], dtype="float32")
    soundfile.write(tmp_path / "other.flac", samples, rate)
    utterance = _utterance(tmp_path / "other.flac")
    assert len(Decoder()(utterance)) == utterance.num_samples
    whole = torchaudio.functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE)
    assert utterance.num_samples == len(whole)
    assert len(Decoder(max_samples=3000, epoch=0)(utterance)) == 3000


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_truncated_audio_is_named(corpus: Path, suffix: str) -> None:
    """A file cut off since its header was read: FLAC fails to decode, WAV is merely shorter."""
    samples, rate = soundfile.read(files_of(corpus)[0])
    path = corpus / f"cut{suffix}"
    soundfile.write(path, samples, rate)
    utterance = _utterance(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=path.name):
        Decoder()(utterance)


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """A float WAV can hold NaN, which would end a training run days later."""
    samples = np.zeros(8000, dtype=np.float32)
    samples[4000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, SAMPLE_RATE, "FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav holds samples that are not finite"):
        Decoder()(_utterance(tmp_path / "nan.wav"))


def test_collate_pads_with_zeros_on_the_right() -> None:
    """Padding is silence after the end, and the seconds count valid samples alone."""
    batch = collate([torch.ones(16_000), torch.ones(8000)], ["long", "short"])
    assert batch.num_samples.tolist() == [16_000, 8000]
    assert batch.waveforms.sum(1).tolist() == [16_000, 8000]
    assert not batch.waveforms[1, 8000:].any()
    assert batch.seconds.item() == 1.5
    with pytest.raises(ValueError, match="do not make a batch"):
        collate([], [])

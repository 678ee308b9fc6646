"""Finding speech in folders: layouts, names, what is missing or damaged, downloads."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from interstack.data import LibriSpeechFolder
from interstack.errors import DataError
from tests.data.corpora import SPEECH, files_of, make_data_module


def _names(source: LibriSpeechFolder, on_corrupt: str = "raise") -> list[str]:
    found, _ = source.utterances("train", on_corrupt)
    return [utterance.id for utterance in found]


def test_the_folder_itself_or_the_one_above_may_be_named() -> None:
    """Either of the two is what people call the root."""
    expected = [file.stem for file in files_of(SPEECH)]
    assert _names(LibriSpeechFolder(SPEECH)) == expected
    assert _names(LibriSpeechFolder(SPEECH / "LibriSpeech")) == expected


def test_splits_add_up(corpus: Path) -> None:
    """Several folders make one split; a name that recurs is told apart by its folder."""
    splits = ("train-clean-100", "dev-clean")
    names = _names(LibriSpeechFolder(corpus, train=splits))
    assert len(set(names)) == len(names) == 2 * len(files_of(corpus))
    assert (
        names[0]
        == files_of(corpus)[0].relative_to(corpus / "LibriSpeech").with_suffix("").as_posix()
    )


def test_other_layouts_and_formats_are_read(corpus: Path, tmp_path: Path) -> None:
    """WAV and Ogg, flat or nested, serve as well as LibriSpeech's own layout."""
    samples, rate = soundfile.read(files_of(corpus)[0])
    (tmp_path / "mine" / "a" / "b" / "c").mkdir(parents=True)
    soundfile.write(tmp_path / "mine" / "flat.wav", samples, rate)
    soundfile.write(tmp_path / "mine" / "a" / "b" / "c" / "deep.OGG", samples, rate, format="OGG")
    (tmp_path / "mine" / "notes.txt").write_text("not audio")
    assert _names(LibriSpeechFolder(tmp_path, train=["mine"])) == ["deep", "flat"]


def test_a_missing_split_says_what_there_is(corpus: Path) -> None:
    """And that LibriSpeech's own can be downloaded, which other names can't."""
    with pytest.raises(
        DataError,
        match=r"'train-clean-360'.*has dev-clean, train-clean-100.*data.source.download to true",
    ):
        _names(LibriSpeechFolder(corpus, train=["train-clean-360"]))
    with pytest.raises(DataError, match="'mine'") as caught:
        _names(LibriSpeechFolder(corpus, train=["mine"]))
    assert "download" not in str(caught.value)
    with pytest.raises(DataError, match="is no folder"):
        _names(LibriSpeechFolder(corpus / "nowhere"))


def test_an_empty_split_is_refused(corpus: Path) -> None:
    """A folder without audio, and a split without folders."""
    (corpus / "LibriSpeech" / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no audio that can be read: put FLAC"):
        _names(LibriSpeechFolder(corpus, train=["empty"]))
    with pytest.raises(DataError, match="no split is named for train"):
        _names(LibriSpeechFolder(corpus, train=[]))


@pytest.mark.parametrize("content", [b"", b"no audio at all", b"fLaC"])
def test_corrupt_files_are_found_before_training(corpus: Path, content: bytes) -> None:
    """Zero bytes, something else, or a bare beginning: named, or left out and counted."""
    victim = files_of(corpus)[2]
    victim.write_bytes(content)
    with pytest.raises(DataError, match=victim.name):
        make_data_module(corpus)
    report = make_data_module(corpus, on_corrupt="skip").report()
    assert report["train/corrupt"] == 1
    assert report["train/utterances"] == len(files_of(corpus)) - 1


def test_a_split_of_nothing_but_corrupt_files_is_refused(corpus: Path) -> None:
    """Skipping all of it is no training."""
    for file in files_of(corpus):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"all \d+ audio files of train are corrupt"):
        make_data_module(corpus, on_corrupt="skip")


def test_other_rates_are_refused_by_name_or_resampled(corpus: Path) -> None:
    """A telephone recording among 16 kHz ones."""
    victim = files_of(corpus)[2]
    samples, _ = soundfile.read(victim)
    soundfile.write(victim, samples[::2], 8000)
    with pytest.raises(
        DataError, match=rf"{victim.name} is sampled at 8000 Hz.*set data.resample to true"
    ):
        make_data_module(corpus)
    batches = list(make_data_module(corpus, resample=True).train_dataloader())
    assert victim.stem in {id_ for batch in batches for id_ in batch.ids}


def test_several_channels_are_told_of(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for the split, not one a file."""
    for victim in files_of(corpus)[:2]:
        samples, rate = soundfile.read(victim)
        soundfile.write(victim, [[sample, sample] for sample in samples], rate)
    list(make_data_module(corpus).train_dataloader())
    assert [m for m in caplog.messages if "2 files of train have several channels" in m]
    assert len(caplog.messages) == 1

"""A split is exactly the audio that lies on the disk: every format, each real file once."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from interstack.constants import SAMPLE_RATE
from interstack.data import LibriSpeechFolder
from interstack.data.audio import Decoder, Utterance, read_header
from interstack.data.audio_files import AUDIO_SUFFIXES, list_audio
from interstack.data.base import Split
from interstack.data.folder import FileSource
from interstack.data.skips import OnCorrupt
from interstack.errors import DataError
from tests.data.corpora import SPEECH, files_of, make_data_module

FORMATS = {
    "flac": ("FLAC", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "ULAW"),
    "caf": ("CAF", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "w64": ("W64", "PCM_16"),
}


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Two seconds of a real voice."""
    samples = np.concatenate([soundfile.read(file)[0] for file in files_of(SPEECH)[:3]])
    return np.asarray(samples[: 2 * SAMPLE_RATE])


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A split of three real files, beside another one."""
    for name, part in (("train", slice(0, 3)), ("dev", slice(3, 5))):
        folder = tmp_path / name / "speaker" / "chapter"
        folder.mkdir(parents=True)
        for file in files_of(SPEECH)[part]:
            shutil.copy(file, folder)
    return tmp_path / "train"


def _listed(root: Path, on_corrupt: OnCorrupt = "raise", **splits: list[str]) -> list[Utterance]:
    source = LibriSpeechFolder(root, **({"train": ["train"]} | splits))
    found, _ = source.utterances("train", on_corrupt)
    return found


def _write(path: Path, samples: np.ndarray, kind: str, rate: int = SAMPLE_RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    format_, subtype = FORMATS[kind]
    soundfile.write(path, samples, rate, format=format_, subtype=subtype)


def _up_once(split: Path) -> None:
    (split / "speaker" / "up").symlink_to("..")


def _up_twice(split: Path) -> None:
    (split / "speaker" / "up").symlink_to(split)
    (split / "speaker" / "chapter" / "here").symlink_to(".")


def _above_the_split(split: Path) -> None:
    (split / "all").symlink_to("..")


def _beside(split: Path) -> None:
    """Two folders that link to each other, outside, one of them back to the whole corpus."""
    for name in ("one", "two"):
        (split.parent / "elsewhere" / name).mkdir(parents=True)
    (split.parent / "elsewhere" / "one" / "two").symlink_to("../two")
    (split.parent / "elsewhere" / "two" / "one").symlink_to("../one")
    (split.parent / "elsewhere" / "two" / "corpus").symlink_to(split.parent)
    (split / "linked").symlink_to(split.parent / "elsewhere" / "one")


def _other_names(split: Path) -> None:
    file = next(split.rglob("*.flac"))
    (split / "a.flac").symlink_to(file)
    (split / "speaker" / "z.flac").symlink_to(split / "a.flac")
    (split / "again").symlink_to(split / "speaker")


@pytest.mark.parametrize("link", [_up_once, _up_twice, _above_the_split, _beside, _other_names])
def test_links_neither_add_nor_rename_anything(split: Path, link: Callable[[Path], None]) -> None:
    """Each real file is there once, under the name that it has without links."""
    before = _listed(split.parent)
    assert len(before) == 3
    link(split)
    assert _listed(split.parent) == before


def test_a_file_of_several_names_is_one_utterance(
    split: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hard links are names of one file; how many were met is said once."""
    file = sorted(split.rglob("*.flac"))[0]
    os.link(file, file.with_name("zz.flac"))
    with caplog.at_level(logging.INFO):
        assert _listed(split.parent)[0].id == file.stem
        assert len(_listed(split.parent)) == 3
    assert "1 more paths of train lead to files that it already has" in caplog.messages[0]


def test_what_only_a_link_leads_to_is_part_of_the_split(split: Path) -> None:
    """A folder and a file that lie elsewhere; and a split that is named twice counts once."""
    dev = split.parent / "dev"
    (split / "more").symlink_to(dev / "speaker")
    names = {utterance.name for utterance in _listed(split.parent)}
    assert len(names) == 5
    assert sum(name.startswith(f"{split}/more/") for name in names) == 2
    assert len(_listed(split.parent, train=["train", "dev"])) == 5
    assert len(_listed(split.parent, train=["train", "train", "train/speaker"])) == 5


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_whatever_its_name(
    kind: str, speech: np.ndarray, tmp_path: Path
) -> None:
    """By its suffix in any case, or by its content; a crop is a piece of the whole, bit by bit."""
    for name in (f"a.{kind}", f"b.{kind.upper()}", "c.wav", "d.m4a"):
        _write(tmp_path / "train" / name, speech, kind)
    found = _listed(tmp_path)
    assert [utterance.id for utterance in found] == ["a", "b", "c", "d"]
    assert {utterance.num_samples for utterance in found} == {len(speech)}
    whole = Decoder()(found[0])
    for epoch in range(6):
        decode = Decoder(max_samples=5000, epoch=epoch)
        start, length = decode.crop(found[0])
        assert decode(found[0]).equal(whole[start : start + length])


@pytest.mark.parametrize("bit_rate", ["CONSTANT", "VARIABLE"])
def test_an_mp3_that_states_no_length_is_read_whole_or_refused(
    bit_rate: str, speech: np.ndarray, tmp_path: Path
) -> None:
    """As if the first frame's bit rate were that of all, libsndfile would end too early or late."""
    path = tmp_path / "train" / "a.mp3"
    path.parent.mkdir()
    varied = np.concatenate([speech, 0 * speech, speech])
    soundfile.write(path, varied, SAMPLE_RATE, bitrate_mode=bit_rate, compression_level=0.5)
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 2) :])  # without the frame of the header
    if bit_rate == "VARIABLE":
        with pytest.raises(
            DataError, match=r"a\.mp3 is an MP3 of variable bit rate that states no"
        ):
            _listed(tmp_path)
    else:
        for tag in (b"", b"ID3\x03\0\0\0\0" + bytes([64, 0]) + bytes(64 << 7)):  # 8 KB of it
            path.write_bytes(tag + content[content.index(content[:2], 2) :])
            (found,) = _listed(tmp_path)
            assert len(varied) <= len(Decoder()(found)) < len(varied) + 4000


def test_the_list_of_suffixes_is_libsndfiles() -> None:
    """What a new release of it reads is read at once, but for what only its name would tell."""
    known = {f".{name.lower()}" for name in soundfile.available_formats()}
    assert known - AUDIO_SUFFIXES <= {".raw", ".sd2", ".mat4", ".mat5", ".mpc2k", ".wavex"}
    assert {".mp3", ".opus", ".aif", ".snd"} <= AUDIO_SUFFIXES


def test_what_looks_like_audio_and_is_not_read_is_counted_and_named(
    speech: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line; what is no audio at all is passed over in silence."""
    folder = tmp_path / "train"
    for number in range(3):
        for kind in ("flac", "mp3", "opus"):
            _write(folder / f"{kind}{number}.{kind}", speech, kind)
        (folder / f"{number}.M4A").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    (folder / "samples.raw").write_bytes((speech * 32767).astype("<i2").tobytes())
    (folder / "._flac0.flac").write_bytes(b"\0\5\x16\7")
    (folder / ".cache").mkdir()
    _write(folder / ".cache" / "old.flac", speech, "flac")
    _write(folder / "folder.wav" / "inside.wav", speech, "wav")
    (folder / "notes.txt").write_text("no audio")
    assert len(_listed(tmp_path)) == 10
    (message,) = caplog.messages
    skipped = f"3 .m4a, 1 .raw, the first: {folder / '0.M4A'}"
    assert "4 files of train look like audio that can't be read and are skipped (" in message
    assert f"({skipped}): convert them to FLAC" in message
    only = tmp_path / "other"
    only.mkdir()
    (only / "x.wma").write_bytes(b"0&\xb2u")
    with pytest.raises(
        DataError, match=r"no audio that can be read but 1 \.wma, the first: .*x\.w"
    ):
        _listed(tmp_path, train=["other"])


def _broken_link(path: Path) -> None:
    path.symlink_to("nowhere.flac")


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_broken_link, r"can't be opened \(it is a link to nowhere\.flac, which is not there\)"),
        (_link_to_itself, r"can't be opened \(Too many levels of symbolic links\)"),
        (os.mkfifo, r"is no regular file: fetch it again or remove it"),
        (Path.touch, r"is empty \(0 bytes\): fetch it again or remove it"),
    ],
)
def test_a_name_without_audio_behind_it_is_corrupt(
    split: Path, make: Callable[[Path], None], complaint: str
) -> None:
    """Named, or skipped and counted as any other corrupt file; a pipe is not waited for."""
    make(split / "bad.flac")
    with pytest.raises(
        DataError, match=f"{split}/bad.flac {complaint}.*or set data.on_corrupt to skip"
    ):
        _listed(split.parent)
    assert len(_listed(split.parent, "skip")) == 3
    report = make_data_module(
        LibriSpeechFolder(split.parent, train=["train"], validation=["dev"]), on_corrupt="skip"
    ).report()
    assert (report["train/utterances"], report["train/corrupt"]) == (3, 1)


def test_a_file_that_may_not_be_read_is_corrupt(
    split: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Named with the reason, or skipped and counted."""
    denied, opened = sorted(split.rglob("*.flac"))[1], os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if path == str(denied):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=f"^{denied} can't be opened \\(Permission denied\\): see"):
        _listed(split.parent)
    assert len(_listed(split.parent, "skip")) == 2
    assert f"1 files of train can't be read and are skipped, the first: {denied}" in caplog.text


def test_a_folder_that_can_not_be_listed_ends_the_run(
    split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how much it holds, so that it is not skipped."""
    scan = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("chapter"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"chapter can't be listed \(Permission denied\)"):
        _listed(split.parent, "skip")


def test_files_that_differ_by_their_suffix_are_different_utterances(
    speech: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ids are unique; that one recording may be there twice is said with both names."""
    for name in ("a/x.wav", "a/x.flac", "b/x.flac", "b/y.mp3"):
        _write(tmp_path / "train" / name, speech, name.rpartition(".")[2])
    ids = [utterance.id for utterance in _listed(tmp_path)]
    assert ids == ["train/a/x.flac", "train/a/x.wav", "train/b/x", "train/b/y"]
    (message,) = caplog.messages
    assert (
        "2 files of train differ by their suffixes alone (train/a/x.flac, train/a/x.wav" in message
    )


class _Repeating(FileSource):
    """A corpus of somebody else's that names two utterances alike."""

    def utterances(self, split: Split, on_corrupt: OnCorrupt) -> tuple[list[Utterance], list[str]]:
        """List two files under one id."""
        del split, on_corrupt
        files = files_of(SPEECH)[:2]
        return [read_header("same", str(file), str(file)) for file in files], []


def test_ids_that_are_not_unique_are_refused_of_any_source() -> None:
    """Before anything is decoded, with both files and what to do."""
    one, two = files_of(SPEECH)[:2]
    with pytest.raises(DataError, match=f"{one} and {two} are both the utterance same of train: "):
        make_data_module(_Repeating())


def test_a_name_that_no_output_can_have_is_refused(split: Path) -> None:
    """One that is not UTF-8."""
    shutil.copy(next(split.rglob("*.flac")), os.fsencode(split) + b"/caf\xe9.flac")
    with pytest.raises(DataError, match=r"train/caf\\udce9\.flac is not UTF-8: rename it"):
        _listed(split.parent)


def test_listing_is_the_same_for_everything_that_looks_for_audio(split: Path) -> None:
    """SUPERB's own search among them."""
    from interstack.evaluation.superb.compatibility import find_files

    _up_once(split)
    expected = sorted(map(str, split.rglob("*.flac")))
    assert list_audio(split).files == find_files(split) == expected

"""Files that end before their header says, of formats whose decoders pass over it in silence."""

from __future__ import annotations

import io
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from interstack.constants import SAMPLE_RATE
from interstack.data import LibriSpeechFolder
from interstack.data.audio import read_header, read_samples
from interstack.data.shards import pack
from interstack.errors import DataError
from tests.data.corpora import SPEECH, files_of, make_data_module, make_stream_module, shards_in

FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "IMA_ADPCM"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AIFF", "ULAW"),
    ("SVX", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("VOC", "PCM_16"),
    ("NIST", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Three seconds of a real voice."""
    samples = np.concatenate([soundfile.read(file)[0] for file in files_of(SPEECH)[:3]])
    return np.asarray(samples[: 3 * SAMPLE_RATE])


def _encode(samples: np.ndarray, format_: str, subtype: str, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format=format_, subtype=subtype, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("format_", "subtype"), FORMATS)
def test_what_is_cut_off_is_refused_by_its_header(
    format_: str, subtype: str, channels: int, speech: np.ndarray, tmp_path: Path
) -> None:
    """In half or near its end, as file and as bytes; whole, and with more behind it, it is read."""
    if format_ == "SVX" and channels == 2:
        channels = 1
    content = _encode(np.stack([speech] * channels, 1), format_, subtype)
    file = tmp_path / "x.wav"
    for kept in (content, content + bytes(7)):
        file.write_bytes(kept)
        assert read_header("x", str(file), "x").num_source_samples >= len(speech)
        assert read_header("x", kept, "x").num_source_samples >= len(speech)
    for kept in (content[: len(content) // 2], content[:-600]):
        file.write_bytes(kept)
        for audio in (kept, str(file)):
            with pytest.raises(DataError, match=r"^x (is cut off, |can't be read as audio)"):
                read_header("x", audio, "x")
            with pytest.raises(DataError, match=r"^x (is cut off, |can't be read as audio)"):
                read_samples(audio, "x")


def test_the_message_has_both_sizes(speech: np.ndarray) -> None:
    """And what to do."""
    content = _encode(speech, "WAV", "PCM_16")
    with pytest.raises(
        DataError,
        match=r"^x is cut off, its header states 96000 bytes of samples, and 40000 are there: "
        "fetch it again or remove it$",
    ):
        read_header("x", content[: 44 + 40000], "x")


def _sized(order: str, *sizes: tuple[int, int]) -> Callable[[bytes], bytes]:
    """Return a function that puts sizes into a header."""

    def put(content: bytes) -> bytes:
        changed = bytearray(content)
        for position, size in sizes:
            struct.pack_into(f"{order}I", changed, position, size)
        return bytes(changed)

    return put


def _with_chunks(content: bytes) -> bytes:
    """Put a long chunk of odd length before the samples, and another behind them."""
    odd = b"LIST" + struct.pack("<I", 5001) + bytes(5002)
    return content[:36] + odd + content[36:] + b"LIST" + struct.pack("<I", 4) + b"INFO"


@pytest.mark.parametrize(
    ("format_", "change"),
    [
        ("WAV", _sized("<", (4, 8), (40, 0))),  # not closed, as libsndfile knows it
        ("WAV", _sized("<", (4, 0xFFFFFFFF), (40, 0xFFFFFFFF))),  # as ffmpeg writes to a pipe
        ("WAV", _sized("<", (4, 0x7FFFF024), (40, 0x7FFFF000))),  # as SoX does
        ("WAV", _sized("<", (4, 0x80000024), (40, 0x80000000))),  # as arecord does
        ("WAV", _sized("<", (4, 0x7FFFFFFF))),  # RIFF's own size alone
        ("WAV", _sized("<", (40, 96_044))),  # the file's size in place of the samples'
        ("WAV", _sized("<", (40, 96_036))),  # RIFF's
        ("WAV", _with_chunks),
        ("WAV", lambda content: content[:-1]),  # less than a sample
        ("AU", _sized(">", (8, 0xFFFFFFFF))),
        ("AIFF", _sized(">", (4, 0x7F00002E), (42, 0x7F000008))),
    ],
)
def test_a_header_that_states_no_end_is_no_fault(
    format_: str, change: Callable[[bytes], bytes], speech: np.ndarray
) -> None:
    """It was written to a pipe, or by a program that counts otherwise: what is there is read."""
    content = change(_encode(speech, format_, "PCM_16"))
    assert len(speech) - 1 <= read_header("x", content, "x").num_source_samples <= len(speech)


@pytest.fixture
def cut_corpus(tmp_path: Path) -> Path:
    """A corpus of WAV files in which one of each split is cut in half."""
    for split in ("train-clean-100", "dev-clean", "test-clean"):
        for file in files_of(SPEECH, split)[:6]:
            target = tmp_path / "corpus" / split / f"{file.stem}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, *soundfile.read(file))
        _halve(target)
    return tmp_path / "corpus"


def _halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_file_of_a_split_that_is_cut_off_is_named_and_counted(cut_corpus: Path) -> None:
    """As a FLAC that can't be decoded; what a run then has is in its report."""
    with pytest.raises(DataError, match=r"\.wav is cut off, .*, or set data\.on_corrupt to skip"):
        make_data_module(cut_corpus)
    report = make_data_module(cut_corpus, on_corrupt="skip").report()
    assert (report["train/utterances"], report["train/corrupt"]) == (5, 1)
    assert report["validation/corrupt"] == 1


def test_pack_names_and_counts_it(
    cut_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not packed at half its length."""
    source = LibriSpeechFolder(cut_corpus)
    with pytest.raises(DataError, match=r"is cut off, its header states"):
        pack(source, tmp_path / "shards", ("validation",))
    packed = pack(source, tmp_path / "shards", ("train", "validation"), on_corrupt="skip")
    assert packed == {"train": 5, "validation": 5}
    assert caplog.text.count("1 files of ") == caplog.text.count("is cut off, its header") == 2


def test_a_file_in_a_shard_is_named_and_counted(packed: Path, tmp_path: Path) -> None:
    """Shards of lhotse may hold WAV."""
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    for name in ("train", "validation"):
        for shard in (shards / name).glob("*.tar"):
            _as_wav(shard, cut=(name, shard.name) == ("validation", "recording.000000.tar"))
    module = make_stream_module(shards_in(shards), on_corrupt="skip")
    assert len([id_ for batch in module.val_dataloader() for id_ in batch.ids]) > 0
    assert module.report()["skipped"] == 1
    with pytest.raises(DataError, match=r"is cut off, its header states"):
        list(make_stream_module(shards_in(shards)).val_dataloader())


def _as_wav(shard: Path, *, cut: bool) -> None:
    """Replace the FLAC of a shard by WAV, the second of them cut in half."""
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
        contents = [(member.name, file.read()) for member, file in members if file is not None]
    with tarfile.open(shard, "w") as tar:
        for number, (name, content) in enumerate(contents):
            if name.endswith(".flac"):
                samples, _ = soundfile.read(io.BytesIO(content))
                content = _encode(samples, "WAV", "PCM_16")
                name = f"{name.removesuffix('.flac')}.wav"
                if cut and number == 2:
                    content = content[: len(content) // 2]
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_the_embedded_speech_is_whole() -> None:
    """No false alarm, in every format that states a length."""
    for file in files_of(SPEECH, "dev-clean")[:6]:
        samples, rate = soundfile.read(file)
        assert read_header("x", str(file), "x").num_source_samples == len(samples)
        for format_, subtype in FORMATS:
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, rate, format=format_, subtype=subtype)
            read_header("x", buffer.getvalue(), "x")


def test_a_split_of_cut_files_alone_ends_the_run(cut_corpus: Path) -> None:
    """Also where they are to be skipped."""
    for file in (cut_corpus / "train-clean-100").iterdir():
        if file.stat().st_size > 2000:
            _halve(file)
    source = LibriSpeechFolder(cut_corpus)
    with pytest.raises(DataError, match=r"all 6 audio files of train are corrupt: .* is cut off"):
        source.utterances("train", "skip")

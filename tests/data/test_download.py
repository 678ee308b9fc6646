"""Downloads of LibriSpeech, from a stand-in on this machine: whole, once, or not at all."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torchaudio

from interstack.data import LibriSpeechFolder
from interstack.data.download import download_split
from interstack.errors import DataError
from tests.data.corpora import SPEECH, files_of

_NAMES = [file.stem for file in files_of(SPEECH, "dev-clean")]
_processes = multiprocessing.get_context("fork")  # so that they see what is patched


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tar.gz of the split dev-clean that torchaudio "downloads"; it notes each download."""
    path = tmp_path / "served" / "dev-clean.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(SPEECH / "LibriSpeech" / "dev-clean", "LibriSpeech/dev-clean")

    def copy(url: str, target: str, hash_prefix: str) -> None:
        assert url.endswith("/dev-clean.tar.gz")
        assert len(hash_prefix) == 64
        with (path.parent / "log").open("a") as log:
            log.write("downloaded\n")
        shutil.copy(path, target)

    monkeypatch.setattr(torchaudio.datasets.librispeech, "download_url_to_file", copy)
    return path


def _downloads(archive: Path) -> int:
    return len((archive.parent / "log").read_text().splitlines())


@pytest.fixture
def source(tmp_path: Path) -> LibriSpeechFolder:
    """A folder that has nothing yet."""
    return LibriSpeechFolder(
        tmp_path / "new", train=["dev-clean"], validation=[], test=[], download=True
    )


def _names(source: LibriSpeechFolder) -> list[str]:
    found, _ = source.utterances("train", "raise")
    return [utterance.id for utterance in found]


def test_missing_splits_are_downloaded_whole(archive: Path, source: LibriSpeechFolder) -> None:
    """Only what is missing, and nothing is left beside it."""
    source.prepare()
    assert _names(source) == _NAMES
    assert [path.name for path in source.base.iterdir()] == ["dev-clean"]
    source.prepare()
    assert _downloads(archive) == 1


def _kill_in(monkeypatch: pytest.MonkeyPatch, where: str, half: Callable[[str], None]) -> None:
    """Lets a process be killed half-way through one of torchaudio's functions."""

    def die(*arguments: str, **_: str) -> None:
        half(arguments[-1])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torchaudio.datasets.librispeech, where, die)


def _half_a_download(target: str) -> None:
    Path(f"{target}.0.partial").write_bytes(bytes(1000))


def _half_unpacked(archive: str) -> None:
    with tarfile.open(archive) as tar:
        for member in tar.getmembers()[:20]:
            tar.extract(member, Path(archive).parent, filter="data")


@pytest.mark.parametrize(
    ("where", "half"),
    [("download_url_to_file", _half_a_download), ("_extract_tar", _half_unpacked)],
)
def test_a_download_that_was_killed_is_taken_up_again(
    archive: Path,
    source: LibriSpeechFolder,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    half: Callable[[str], None],
) -> None:
    """No half of a split looks whole, no lock is left, and a whole archive is used."""
    with monkeypatch.context() as patch:
        _kill_in(patch, where, half)
        victim = _processes.Process(target=source.prepare)
        victim.start()
        victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert not (source.base / "dev-clean").exists()
    source.prepare()
    assert _names(source) == _NAMES
    assert [path.name for path in source.base.iterdir()] == ["dev-clean"]
    assert _downloads(archive) == 1


def test_of_two_processes_one_downloads_and_the_other_waits(
    archive: Path,
    source: LibriSpeechFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Lightning lets one process a machine prepare the data, and machines may share the disk."""
    begun, waited_for = _processes.Event(), _processes.Event()
    unpack = torchaudio.datasets.librispeech._extract_tar

    def slowly(path: str) -> None:
        begun.set()
        assert waited_for.wait(60)
        unpack(path)

    def notice(record: logging.LogRecord) -> bool:
        if "another process is at" in record.getMessage():
            waited_for.set()
        return True

    monkeypatch.setattr(torchaudio.datasets.librispeech, "_extract_tar", slowly)
    first = _processes.Process(target=source.prepare)
    first.start()
    assert begun.wait(60)
    caplog.handler.addFilter(notice)
    with caplog.at_level(logging.INFO, logger="interstack"):
        source.prepare()
    caplog.handler.removeFilter(notice)
    assert _names(source) == _NAMES
    first.join()
    assert first.exitcode == 0
    assert _downloads(archive) == 1
    assert [path.name for path in source.base.iterdir()] == ["dev-clean"]


def test_who_waited_for_a_download_that_failed_downloads(
    archive: Path,
    source: LibriSpeechFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The lock of a process that is killed is free."""
    begun = _processes.Event()

    def hang(*_: str, **__: str) -> None:
        begun.set()
        signal.pause()

    with monkeypatch.context() as patch:
        patch.setattr(torchaudio.datasets.librispeech, "download_url_to_file", hang)
        first = _processes.Process(target=source.prepare)
        first.start()
        assert begun.wait(60)

    def kill(record: logging.LogRecord) -> bool:
        if "another process is at" in record.getMessage():
            first.kill()
        return True

    caplog.handler.addFilter(kill)
    with caplog.at_level(logging.INFO, logger="interstack"):
        source.prepare()
    caplog.handler.removeFilter(kill)
    first.join()
    assert _names(source) == _NAMES
    assert _downloads(archive) == 1


def test_a_broken_archive_is_not_used_again(archive: Path, source: LibriSpeechFolder) -> None:
    """Torchaudio does not check an archive that it finds downloaded."""
    workshop = source.base / ".download-dev-clean"
    workshop.mkdir(parents=True)
    (workshop / "dev-clean.tar.gz").write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"dev-clean could not be downloaded .*: try again"):
        source.prepare()
    assert not (source.base / "dev-clean").exists()
    source.prepare()
    assert _names(source) == _NAMES


def test_a_download_that_fails_says_how_to_do_without(
    source: LibriSpeechFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, a file system without locks, a name that LibriSpeech does not have."""

    def fail(*_: object, **__: object) -> None:
        raise URLError("no route")

    def no_locks(*_: object) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr(torchaudio.datasets.librispeech, "download_url_to_file", fail)
    with pytest.raises(DataError, match=r"dev-clean could not be downloaded.*no route.*unpack"):
        source.prepare()
    monkeypatch.setattr("fcntl.lockf", no_locks)
    with pytest.raises(DataError, match=r"could not be downloaded.*No locks.*unpack"):
        source.prepare()
    with pytest.raises(DataError, match="'mine' can't be downloaded: name one of dev-clean"):
        download_split("mine", tmp_path)


def test_an_archive_that_would_write_elsewhere_is_refused(
    archive: Path, source: LibriSpeechFolder, tmp_path: Path
) -> None:
    """Under every Python, also where torchaudio and Python's default would unpack it."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(SPEECH / "manifest.tsv", "../../../../escaped")
    with pytest.raises(DataError, match="dev-clean could not be downloaded"):
        source.prepare()
    assert not list(tmp_path.rglob("escaped"))

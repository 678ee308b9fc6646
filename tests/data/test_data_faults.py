"""Data that vanish or turn bad in the middle of an epoch, after they were found good."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from interstack.data import SpeechDataModule
from interstack.data.loader import SpeechLoader
from interstack.errors import DataError
from tests.data.corpora import (
    files_of,
    hub_over,
    ids_of,
    make_data_module,
    make_stream_module,
    shards_in,
)

workers = pytest.mark.parametrize("num_workers", [0, 2])


def _loader(module: SpeechDataModule, split: str) -> SpeechLoader:
    return module.train_dataloader() if split == "train" else module.val_dataloader()


def _cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])


def _garble(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(500)
    file.write_bytes(content)


def _make_unreadable(file: Path) -> None:
    """Puts a link to itself in its place: unlike a file without permissions, root can't read it."""
    file.unlink()
    file.symlink_to(file)


@workers
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_cut_off, r"is corrupt \(.*lost sync"),
        (_garble, r"is corrupt \(.*lost sync"),
        (Path.unlink, r"can't be opened \(No such file or directory\): see that it is there"),
        (_make_unreadable, r"can't be opened \(Too many levels of symbolic links\): see that"),
    ],
)
def test_a_file_that_turns_bad_is_named(
    corpus: Path, num_workers: int, split: str, harm: Callable[[Path], None], complaint: str
) -> None:
    """In training and in validation, with what is wrong and what to do."""
    module = make_data_module(corpus, num_workers=num_workers)
    victim = files_of(corpus, {"train": "train-clean-100", "validation": "dev-clean"}[split])[5]
    harm(victim)
    with pytest.raises(DataError, match=rf"{victim} {complaint}") as caught:
        list(_loader(module, split))
    assert "Traceback" not in str(caught.value)


@workers
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("on_corrupt", ["raise", "skip"])
def test_a_directory_that_vanishes_ends_the_run(
    corpus: Path, num_workers: int, split: str, on_corrupt: str
) -> None:
    """After the first batch; it is named, and `skip` does not go on to the end of nothing."""
    module = make_data_module(
        corpus, num_workers=num_workers, on_corrupt=on_corrupt, batch_seconds=15.0
    )
    batches = iter(_loader(module, split))
    next(batches)
    corpus.rename(corpus.with_name("gone"))  # at once, unlike the removal of a tree
    with pytest.raises(DataError, match=rf"\.flac can't be opened \(there is no folder {corpus}\)"):
        list(batches)


def test_skipping_ends_when_all_fail(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder and of a stream; some in a row may fail."""
    monkeypatch.setattr("interstack.data.skips.MOST_IN_A_ROW", 3)
    module = make_stream_module(shards_in(packed), on_corrupt="skip")
    failing = set(ids_of([next(iter(module.train_dataloader()))])[:4])

    def read(audio: str | bytes, name: str) -> None:
        del audio
        raise DataError(f"{name} is bad.")

    assert len(failing) == 4
    monkeypatch.setattr("interstack.data.audio.open_audio", read)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        with pytest.raises(
            DataError, match=r"3 utterances in a row .* skipping is meant for.* is bad\."
        ):
            list(loader)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_failures_that_are_not_in_a_row_are_skipped(corpus: Path, split: str) -> None:
    """However many, as long as others can be read in between."""
    module = make_data_module(corpus, on_corrupt="skip", batch_seconds=120.0, num_workers=0)
    for file in files_of(corpus, {"train": "train-clean-100", "validation": "dev-clean"}[split]):
        if int(file.stem[-1]) % 2:
            _cut_off(file)
    for _ in range(4):
        list(_loader(module, split))
    assert module.report()["skipped"] > 2 * 32


@pytest.fixture
def own_shards(packed: Path, tmp_path: Path) -> Path:
    """Shards that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def _replace(file: Path, content: bytes) -> None:
    """Leaves the old file to those who are reading it."""
    file.unlink()
    file.write_bytes(content)


def _cut_between_utterances(shard: Path) -> None:
    """Leaves the first utterance, whole, as a copy does that fails at a lucky moment."""
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[2].offset
    _replace(shard, shard.read_bytes()[:end])


def _cut_in_half(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def _cut_a_pair(shard: Path) -> None:
    """Leaves an utterance without its description."""
    with tarfile.open(shard) as tar:
        end = tar.getmembers()[3].offset
    _replace(shard, shard.read_bytes()[:end] + bytes(10_240))


@workers
@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (Path.unlink, r"No such file.*: see that it is there and readable"),
        (_make_unreadable, r"Too many levels of symbolic links.*: see that it is there"),
        (_cut_in_half, r"unexpected end of data\): copy or pack it again"),
        (_cut_between_utterances, r"its end is missing\): copy or pack it again"),
        (_cut_a_pair, r"Uneven number of files.*: copy or pack it again"),
    ],
)
def test_a_shard_that_turns_bad_is_named(
    own_shards: Path, num_workers: int, harm: Callable[[Path], None], complaint: str
) -> None:
    """Even under `skip`: a shard is too much to lose without a word."""
    module = make_stream_module(
        shards_in(own_shards), num_workers=num_workers, on_corrupt="skip", epoch_batches=60
    )
    batches = iter(module.train_dataloader())
    next(batches)
    for shard in (own_shards / "train").glob("*.tar"):
        harm(shard)
    with pytest.raises(DataError, match=rf"shard {own_shards}/train/recording.*{complaint}"):
        list(batches)
    harm(own_shards / "validation" / "recording.000001.tar")
    with pytest.raises(DataError, match=rf"recording.000001.tar can't be read .*{complaint}"):
        list(module.val_dataloader())


@workers
def test_a_datasets_file_that_vanishes_is_named(
    hub_folder: Path, tmp_path: Path, num_workers: int
) -> None:
    """With the part of the split, for those files that have no names."""
    folder = Path(shutil.copytree(hub_folder, tmp_path / "hub"))
    module = make_stream_module(hub_over(folder), num_workers=num_workers, epoch_batches=60)
    batches = iter(module.train_dataloader())
    next(batches)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=rf"part train-\d of the dataset '{folder}' .*No such file"):
        list(batches)
    with pytest.raises(DataError, match=r"part validation-0 of .*: see that it is there"):
        list(module.val_dataloader())

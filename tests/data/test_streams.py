"""Streams: packed shards and Hugging Face datasets, from disk and over http."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import pytest
import soundfile
from corpora import SPEECH, equal_batches, files_of, ids_of, make_data_module

from interstack.constants import SAMPLE_RATE
from interstack.data import HubDataset, LibriSpeechFolder, Shards, SpeechDataModule, SpeechSource
from interstack.data.pack import pack
from interstack.data.stream_reading import read_share
from interstack.data.streams import StreamFeed
from interstack.errors import ConfigurationError, DataError

_EVERYTHING = {file.stem for file in files_of(SPEECH)}


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded speech as shards of 30 utterances: 7 for training, 2 for validation."""
    output = tmp_path_factory.mktemp("packed") / "shards"
    counts = pack(LibriSpeechFolder(SPEECH), output, utterances_per_shard=30)
    assert counts["train"] == len(_EVERYTHING)
    return output


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as the hub keeps them: parquet files, three for training, one for validation."""
    folder = tmp_path_factory.mktemp("hub")
    for split, pieces in (("train-clean-100", 3), ("dev-clean", 1)):
        files = files_of(SPEECH, split)
        audio = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        dataset = datasets.Dataset.from_dict(
            {"id": [file.stem for file in files], "sound": audio}
        ).cast_column("sound", datasets.Audio(decode=False))
        name = "train" if pieces > 1 else "validation"
        for index in range(pieces):
            path = folder / "data" / f"{name}-{index:05d}-of-{pieces:05d}.parquet"
            path.parent.mkdir(exist_ok=True)
            dataset.shard(pieces, index).to_parquet(path)
    return folder


def _shards(packed: Path | str) -> Shards:
    return Shards([f"{packed}/train"], [f"{packed}/validation"], [f"{packed}/test"])


def _hub(folder: Path) -> HubDataset:
    return HubDataset(str(folder), None, ["train"], ["validation"], [], audio_column="sound")


@pytest.fixture(params=["shards", "hub"])
def source(request: pytest.FixtureRequest) -> SpeechSource:
    """Each kind of stream over the embedded speech."""
    if request.param == "shards":
        return _shards(request.getfixturevalue("packed"))
    return _hub(request.getfixturevalue("hub_folder"))


def _module(source: SpeechSource, **settings: object) -> SpeechDataModule:
    return make_data_module(source, **{"epoch_batches": 12} | settings)


def test_a_stream_gives_the_same_audio_bit_for_bit(source: SpeechSource) -> None:
    """Packing and streaming change nothing, and one pass holds everything once."""
    module, folder = _module(source), make_data_module(SPEECH)
    streamed, direct = (
        {
            id_: waveform[:length].numpy().tobytes()
            for batch in each.val_dataloader()
            for waveform, id_, length in zip(*batch[::2], batch.num_samples, strict=True)
        }
        for each in (module, folder)
    )
    assert streamed == direct


def test_an_epoch_has_as_many_batches_as_set_within_the_budget(source: SpeechSource) -> None:
    """On every rank alike; the length is known beforehand."""
    module = _module(source, batch_seconds=20.0, max_seconds=5.0, epoch_batches=25)
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 25
    padded = [batch.waveforms.numel() / SAMPLE_RATE for batch in batches]
    assert max(padded) <= 20.0
    assert sum(batch.seconds.item() for batch in batches) / sum(padded) > 0.8


def test_streams_go_round_all_of_the_data(source: SpeechSource) -> None:
    """A long epoch repeats the corpus, with all of it in each round."""
    ids = ids_of(_module(source, epoch_batches=70).train_dataloader())
    assert set(ids) == _EVERYTHING
    assert len(ids) > 2 * len(_EVERYTHING)
    counts = [ids.count(id_) for id_ in _EVERYTHING]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_is_repeatable(source: SpeechSource, num_workers: int) -> None:
    """The same batches again for the same seed, epoch and workers."""
    module = _module(source, num_workers=num_workers, max_seconds=3.0, epoch_batches=5)
    again = _module(source, num_workers=num_workers, max_seconds=3.0, epoch_batches=5)
    assert equal_batches(module.train_dataloader(), again.train_dataloader())


def test_another_seed_or_epoch_has_another_order(source: SpeechSource) -> None:
    """Epochs differ in more than where they crop."""
    feed = _module(source, epoch_batches=2)._feeds["train"]
    other = _module(source, epoch_batches=2, seed=1)._feeds["train"]
    first = ids_of(feed.training(0, 0, 1))
    assert first != ids_of(feed.training(1, 0, 1))
    assert first != ids_of(other.training(0, 0, 1))


@pytest.mark.parametrize("readers", [1, 2, 5, 11])
def test_readers_divide_every_round_among_them(source: SpeechSource, readers: int) -> None:
    """Each utterance is read by one of them, be they fewer than the shards or more."""
    feed = _module(source)._feeds["train"]
    assert isinstance(feed, StreamFeed)
    shares = [
        list(iter(partial(next, read_share(feed.shards, feed.settings, 3, reader, readers)), None))
        for reader in range(readers)
    ]
    ids = [utterance.id for share in shares for utterance in share if utterance]
    assert all(shares)
    assert sorted(ids) == sorted(_EVERYTHING)


def test_ranks_and_workers_are_readers_of_their_own(source: SpeechSource) -> None:
    """No utterance is on two ranks, nor comes from two workers of one."""
    module = _module(source, num_workers=2, epoch_batches=2)
    loader = module.train_dataloader()
    loader.dataset.world_size = 2
    ids = ids_of(loader)
    loader.dataset.rank = 1
    ids += ids_of(loader)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("first_batch", [1, 4])
def test_an_epoch_can_begin_at_any_batch(
    source: SpeechSource, num_workers: int, first_batch: int
) -> None:
    """What resuming in the middle of an epoch stands on: the same batches in the same order."""
    module = _module(source, num_workers=num_workers, max_seconds=3.0, epoch_batches=9)
    whole = list(module.train_dataloader())
    rest = module.train_dataloader()
    rest.dataset.first_batch = first_batch
    assert len(rest) == 9 - first_batch
    assert equal_batches(whole[first_batch:], rest)


def test_prediction_keeps_the_order_of_the_shards(packed: Path) -> None:
    """And one pass is alike on all ranks."""
    module = SpeechDataModule(_shards(packed), num_workers=2)
    module.setup("test")
    ids = ids_of(module.predict_dataloader())
    assert sorted(ids) == [file.stem for file in files_of(SPEECH, "test-clean")]
    feed = module._feeds["test"]
    assert ids == ids_of(feed.evaluation(1, 2, keep_order=True))
    assert sorted(ids_of(module.test_dataloader())) == sorted(ids)


def test_shards_are_read_over_http(packed: Path) -> None:
    """From a plain web server, by worker processes."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        """Serves the shards and says nothing."""

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    handler = partial(Quiet, directory=str(packed))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = _module(_shards(f"http://127.0.0.1:{server.server_port}"), num_workers=2)
        local = _module(_shards(packed), num_workers=2)
        assert equal_batches(remote.train_dataloader(), local.train_dataloader())
        server.shutdown()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # lhotse's own
def test_lhotse_reads_what_pack_writes(packed: Path) -> None:
    """The shards are lhotse's format, for those who use lhotse elsewhere."""
    from lhotse import CutSet

    (packed / "train" / "index.json").rename(packed / "index.json")
    try:
        cuts = CutSet.from_shar(in_dir=packed / "train")
        path = {file.stem: file for file in files_of(SPEECH)}
        for cut in cuts:
            samples, _ = soundfile.read(path.pop(cut.id), dtype="float32")
            assert cut.load_audio().tobytes() == samples.tobytes()
        assert not path
        without_index = _module(_shards(packed)).train_dataloader()
        ids = ids_of(without_index)
    finally:
        (packed / "index.json").rename(packed / "train" / "index.json")
    assert ids == ids_of(_module(_shards(packed)).train_dataloader())


def test_packing_refuses_what_is_there_and_begins_again_what_was_cut_off(
    corpus: Path, tmp_path: Path
) -> None:
    """A split's folder is whole or not there."""
    output, source = tmp_path / "out", LibriSpeechFolder(corpus)
    victim = files_of(corpus)[5]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-2000])
    with pytest.raises(DataError, match=victim.name):
        pack(source, output, splits=["train"])
    assert not (output / "train").exists()
    victim.write_bytes(whole)
    assert pack(source, output, splits=["train"]) == {"train": len(files_of(corpus))}
    assert [path.name for path in output.iterdir()] == ["train"]
    with pytest.raises(DataError, match="exists already"):
        pack(source, output, splits=["train"])


def test_packing_can_skip_what_is_corrupt(corpus: Path, tmp_path: Path) -> None:
    """A truncated file and an empty one."""
    first, second = files_of(corpus)[:2]
    first.write_bytes(first.read_bytes()[:-2000])
    second.write_bytes(b"")
    source = LibriSpeechFolder(corpus)
    counts = pack(source, tmp_path / "out", splits=["train"], on_corrupt="skip")
    assert counts == {"train": len(files_of(corpus)) - 2}
    with pytest.raises(ConfigurationError, match="utterances_per_shard"):
        pack(source, tmp_path / "other", utterances_per_shard=0)


def _write_shards(folder: Path, *names: str) -> Shards:
    """Writes an index of shards that are not there."""
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps({"shards": names}))
    return Shards([str(folder)], [str(folder)])


def test_folders_without_shards_are_refused(packed: Path, tmp_path: Path) -> None:
    """Missing, empty, or promising shards that are not there."""
    with pytest.raises(DataError, match="holds no shards"):
        _module(Shards([str(tmp_path)], []))
    with pytest.raises(DataError, match="nowhere holds no shards"):
        _module(Shards([str(tmp_path / "nowhere")], []))
    with pytest.raises(DataError, match="No folder of shards is named for validation"):
        _module(Shards([str(packed / "train")], []))
    with pytest.raises(DataError, match=r"recording.000007.tar can't be read"):
        _module(_write_shards(tmp_path / "shards", "recording.000007.tar"))
    with pytest.raises(DataError, match="can't be listed"):
        _module(Shards(["http://127.0.0.1:9/shards"], []))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_is_cut_off_is_named(packed: Path, tmp_path: Path, num_workers: int) -> None:
    """In the middle of training, by the worker that reads it."""
    source = _write_shards(tmp_path / "shards", "recording.000000.tar")
    whole = (packed / "train" / "recording.000000.tar").read_bytes()
    (tmp_path / "shards" / "recording.000000.tar").write_bytes(whole[: len(whole) // 2])
    module = _module(source, num_workers=num_workers)
    with pytest.raises(DataError, match=r"recording\.000000\.tar can't be read") as caught:
        list(module.train_dataloader())
    assert "Traceback" not in str(caught.value)


def test_corrupt_audio_in_a_stream_is_named_or_skipped(tmp_path: Path) -> None:
    """Something that is no audio at all among a dataset's rows."""
    files = files_of(SPEECH, "dev-clean")
    audio = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    audio[4] = {"bytes": b"no audio", "path": "broken.flac"}
    table = datasets.Dataset.from_dict({"sound": audio})
    for name in ("train", "validation"):
        table.to_parquet(tmp_path / f"{name}.parquet")
    module = _module(_hub(tmp_path))
    with pytest.raises(DataError, match="broken"):
        list(module.train_dataloader())
    module = _module(_hub(tmp_path), on_corrupt="skip")
    expected = {file.stem for file in files} - {files[4].stem}
    assert set(ids_of(module.val_dataloader())) == expected
    assert module.report()["skipped"] == 1


def test_short_utterances_in_a_stream_are_counted(packed: Path) -> None:
    """While reading, as a stream does not know them before."""
    module = _module(_shards(packed), min_seconds=2.0)
    ids = ids_of(module.val_dataloader())
    dropped = len(files_of(SPEECH, "dev-clean")) - len(ids)
    assert dropped > 0
    assert module.report()["too_short"] >= dropped
    with pytest.raises(DataError, match="hold no usable utterance"):
        _module(_shards(packed), min_seconds=15.9)


def test_a_stream_needs_to_know_how_long_an_epoch_is(source: SpeechSource) -> None:
    """And how long an utterance may be, as it can't look ahead."""
    with pytest.raises(ConfigurationError, match=r"data\.epoch_batches"):
        _module(source, epoch_batches=None)
    for longest in (None, 31.0):
        with pytest.raises(ConfigurationError, match=r"data\.max_seconds to at most the 30 s"):
            _module(source, max_seconds=longest)


def test_rows_may_name_files_instead_of_holding_audio(corpus: Path, tmp_path: Path) -> None:
    """A table of paths; the files name the utterances where no column does."""
    files = files_of(corpus)[:6]
    (tmp_path / "table").mkdir()
    kinds = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = {"sound": [{"bytes": None, "path": str(file)} for file in files]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"sound": kinds}))
    for name in ("train", "validation"):
        table.to_parquet(tmp_path / "table" / f"{name}.parquet")
    ids = ids_of(_module(_hub(tmp_path / "table")).val_dataloader())
    assert sorted(ids) == [file.stem for file in files]


def test_what_is_wrong_with_a_dataset_is_said(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such split, no such column, no hub."""
    source = _hub(hub_folder)
    source.splits["train"] = ("elsewhere",)
    with pytest.raises(DataError, match=r"'elsewhere' of the dataset .* can't be opened"):
        _module(source)
    source = _hub(hub_folder)
    source.audio_column = "audio"
    with pytest.raises(DataError, match=r"no column 'audio' but id, sound.*audio_column"):
        _module(source)
    source.splits["train"] = ()
    with pytest.raises(DataError, match="No split is named for train"):
        _module(source)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'nobody/nothing' can't be opened.*local copy"):
        _module(HubDataset("nobody/nothing"))


def test_streams_close_what_they_open(packed: Path) -> None:
    """An epoch that is left in its middle leaves no open file behind."""

    def batches() -> Iterator[object]:
        yield from _module(_shards(packed)).train_dataloader()

    iterator = batches()
    next(iterator)
    del iterator

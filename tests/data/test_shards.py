"""Packing, and shards on disk and over http."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import soundfile

from interstack.data import LibriSpeechFolder, Shards, SpeechDataModule
from interstack.data.base import Split
from interstack.data.loader import SpeechLoader
from interstack.data.shards import pack
from interstack.errors import ConfigurationError, DataError, InterstackError
from tests.checkpointing.full_disks import NoSpace
from tests.data.corpora import (
    SPEECH,
    equal_batches,
    files_of,
    ids_of,
    make_stream_module,
    shards_in,
)


def test_prediction_keeps_the_order_of_the_shards(packed: Path) -> None:
    """And one pass is alike on all ranks."""
    module = SpeechDataModule(shards_in(packed), num_workers=2)
    module.setup("test")
    ids = ids_of(module.predict_dataloader())
    assert sorted(ids) == [file.stem for file in files_of(SPEECH, "test-clean")]
    feed = module._feeds["test"]
    assert ids == ids_of(SpeechLoader(feed.evaluation(1, 2, keep_order=True), 0, seed=0))
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
        remote = make_stream_module(
            shards_in(f"http://127.0.0.1:{server.server_port}"), num_workers=2
        )
        local = make_stream_module(shards_in(packed), num_workers=2)
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
        without_index = make_stream_module(shards_in(packed)).train_dataloader()
        ids = ids_of(without_index)
    finally:
        (packed / "index.json").rename(packed / "train" / "index.json")
    assert ids == ids_of(make_stream_module(shards_in(packed)).train_dataloader())


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


def test_packing_on_a_full_disk_keeps_the_splits_that_are_complete(
    corpus: Path, tmp_path: Path
) -> None:
    """And names what is left to pack; what was half-packed takes no space."""
    output, source = tmp_path / "out", LibriSpeechFolder(corpus)
    fix = r"validation can't be written .*No space left on device\): free space, .*--splits "
    with (
        NoSpace(output, "*validation*"),
        pytest.raises(InterstackError, match=fix + r"""'\["validation"\]' \(train is kept\)"""),
    ):
        pack(source, output, splits=["train", "validation"])
    assert [path.name for path in output.iterdir()] == ["train"]
    assert pack(source, output, splits=["validation"]).keys() == {"validation"}


def test_packing_can_skip_what_is_corrupt(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A truncated file and an empty one; each kind is counted in one line that names the first."""
    first, second = files_of(corpus)[:2]
    first.write_bytes(first.read_bytes()[:-2000])
    second.write_bytes(b"")
    source = LibriSpeechFolder(corpus)
    counts = pack(source, tmp_path / "out", splits=["train"], on_corrupt="skip")
    assert counts == {"train": len(files_of(corpus)) - 2}
    warnings = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert [message.partition(", the first: ")[::2] for message in warnings] == [
        (
            "1 files of train can't be read and are skipped",
            f"{second} is empty (0 bytes): fetch it again or remove it",
        ),
        (
            "1 utterances of train can't be read and are skipped",
            f"{first} is corrupt (flac decoder lost sync): fetch it again or remove it",
        ),
    ]
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
        make_stream_module(Shards([str(tmp_path)], []))
    with pytest.raises(DataError, match="nowhere holds no shards"):
        make_stream_module(Shards([str(tmp_path / "nowhere")], []))
    with pytest.raises(DataError, match="no folder of shards is named for validation"):
        make_stream_module(Shards([str(packed / "train")], []))
    with pytest.raises(DataError, match=r"recording.000007.tar can't be read"):
        make_stream_module(_write_shards(tmp_path / "shards", "recording.000007.tar"))
    with pytest.raises(DataError, match="can't be listed"):
        make_stream_module(Shards(["http://127.0.0.1:9/shards"], []))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_is_cut_off_is_named(packed: Path, tmp_path: Path, num_workers: int) -> None:
    """In the middle of training, by the worker that reads it."""
    source = _write_shards(tmp_path / "shards", "recording.000000.tar")
    whole = (packed / "train" / "recording.000000.tar").read_bytes()
    (tmp_path / "shards" / "recording.000000.tar").write_bytes(whole[: len(whole) // 2])
    module = make_stream_module(source, num_workers=num_workers)
    with pytest.raises(DataError, match=r"recording\.000000\.tar can't be read") as caught:
        list(module.train_dataloader())
    assert "Traceback" not in str(caught.value)


def test_short_utterances_in_a_stream_are_counted(packed: Path) -> None:
    """While reading, as a stream does not know them before."""
    module = make_stream_module(shards_in(packed), min_seconds=2.0)
    ids = ids_of(module.val_dataloader())
    dropped = len(files_of(SPEECH, "dev-clean")) - len(ids)
    assert dropped > 0
    assert module.report()["too_short"] >= dropped
    with pytest.raises(DataError, match="hold no usable utterance"):
        make_stream_module(shards_in(packed), min_seconds=15.9)


def test_streams_close_what_they_open(packed: Path) -> None:
    """An epoch that is left in its middle leaves no open file behind."""

    def batches() -> Iterator[object]:
        yield from make_stream_module(shards_in(packed)).train_dataloader()

    iterator = batches()
    next(iterator)
    del iterator


def test_pack_fetches_its_splits_and_names_its_own_options(corpus: Path, tmp_path: Path) -> None:
    """What is not packed is not fetched; `--resample`, and not `data.resample` of a fit."""
    fetched: list[Sequence[str]] = []

    class Fetching(LibriSpeechFolder):
        """Keeps what is asked for."""

        def prepare(self, splits: Sequence[Split] = ()) -> None:
            """Note the splits."""
            fetched.append(splits)

    victim = files_of(corpus)[0]
    samples, _ = soundfile.read(victim)
    soundfile.write(victim, samples, 8000)
    with pytest.raises(DataError, match="set --resample to true"):
        pack(Fetching(corpus), tmp_path / "packed", ["train"])
    assert fetched == [["train"]]
    with pytest.raises(DataError, match=r"point --source\.root elsewhere"):
        pack(LibriSpeechFolder(corpus, train=["none"]), tmp_path / "packed", ["train"])
    with pytest.raises(ConfigurationError, match="--utterances_per_shard is 0"):
        pack(LibriSpeechFolder(corpus), tmp_path / "packed", utterances_per_shard=0)

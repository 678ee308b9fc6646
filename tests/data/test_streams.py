"""Streams of either kind: their audio, order, length, shares and restarts."""

from __future__ import annotations

import logging
import re
from functools import partial

import pytest
import soundfile

from interstack.constants import SAMPLE_RATE
from interstack.data import Shards, SpeechDataModule, SpeechSource
from interstack.data.base import Feed
from interstack.data.loader import TrainingLoader
from interstack.data.streaming import StreamFeed, read_part
from interstack.errors import ConfigurationError, DataError
from tests.data.corpora import (
    EVERYTHING,
    SPEECH,
    equal_batches,
    files_of,
    hub_over,
    ids_of,
    make_data_module,
    make_stream_module,
    shards_in,
)


@pytest.fixture(params=["shards", "hub"])
def source(request: pytest.FixtureRequest) -> SpeechSource:
    """Each kind of stream over the embedded speech."""
    if request.param == "shards":
        return shards_in(request.getfixturevalue("packed"))
    return hub_over(request.getfixturevalue("hub_folder"))


def test_a_stream_gives_the_same_audio_bit_for_bit(source: SpeechSource) -> None:
    """Packing and streaming change nothing, and one pass holds everything once."""
    module, folder = make_stream_module(source), make_data_module(SPEECH)
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
    module = make_stream_module(source, batch_seconds=20.0, max_seconds=5.0, epoch_batches=25)
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 25
    padded = [batch.waveforms.numel() / SAMPLE_RATE for batch in batches]
    assert max(padded) <= 20.0
    assert sum(batch.seconds.item() for batch in batches) / sum(padded) > 0.8


def test_streams_go_round_all_of_the_data(source: SpeechSource) -> None:
    """A long epoch repeats the corpus, with all of it in each round."""
    ids = ids_of(make_stream_module(source, epoch_batches=70).train_dataloader())
    assert set(ids) == EVERYTHING
    assert len(ids) > 2 * len(EVERYTHING)
    counts = [ids.count(id_) for id_ in EVERYTHING]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_is_repeatable(source: SpeechSource, num_workers: int) -> None:
    """The same batches again for the same seed, epoch and workers."""
    module = make_stream_module(source, num_workers=num_workers, max_seconds=3.0, epoch_batches=5)
    again = make_stream_module(source, num_workers=num_workers, max_seconds=3.0, epoch_batches=5)
    assert equal_batches(module.train_dataloader(), again.train_dataloader())


def _first_ids(feed: Feed, epoch: int) -> list[str]:
    return ids_of(TrainingLoader(feed, epoch=epoch))


def test_another_seed_or_epoch_has_another_order(source: SpeechSource) -> None:
    """Epochs differ in more than where they crop."""
    feed = make_stream_module(source, epoch_batches=2)._feeds["train"]
    other = make_stream_module(source, epoch_batches=2, seed=1)._feeds["train"]
    first = _first_ids(feed, 0)
    assert first != _first_ids(feed, 1)
    assert first != _first_ids(other, 0)


@pytest.mark.parametrize("readers", [1, 2, 5, 11])
def test_readers_divide_every_round_among_them(source: SpeechSource, readers: int) -> None:
    """Each utterance is read by one of them, be they fewer than the shards or more."""
    feed = make_stream_module(source)._feeds["train"]
    assert isinstance(feed, StreamFeed)
    shares = [
        list(iter(partial(next, read_part(feed.shards, feed.settings, 3, reader, readers)), None))
        for reader in range(readers)
    ]
    ids = [utterance.id for share in shares for utterance in share if utterance]
    assert all(shares)
    assert sorted(ids) == sorted(EVERYTHING)


def test_ranks_and_workers_are_readers_of_their_own(source: SpeechSource) -> None:
    """No utterance is on two ranks, nor comes from two workers of one."""
    module = make_stream_module(source, num_workers=2, epoch_batches=2)
    loader = module.train_dataloader()
    loader.dataset.world_size = 2
    ids = ids_of(loader)
    loader.dataset.rank = 1
    ids += ids_of(loader)
    assert len(ids) == len(set(ids))


def test_a_stream_logs_what_its_validation_crops(
    source: SpeechSource, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one by name, and all in number at the end."""
    module = make_stream_module(source, max_seconds=3.0)
    with caplog.at_level(logging.INFO, logger="interstack"):
        list(module.val_dataloader())
        list(module.train_dataloader())
        module.teardown("fit")
    lengths = [soundfile.info(file).duration for file in files_of(SPEECH, "dev-clean")]
    count = sum(length > 3 for length in lengths)
    first, total = (message for message in caplog.messages if "cropped" in message)
    assert re.match(r"\S+ lasts \d\.\d s and is cropped to data.max_seconds, 3 s: raise", first)
    assert total == f"utterances cropped in validation and test: {count}"


def test_a_stream_needs_to_know_how_long_an_epoch_is(source: SpeechSource) -> None:
    """And how long an utterance may be, as it can't look ahead."""
    with pytest.raises(ConfigurationError, match=r"data\.epoch_batches"):
        make_stream_module(source, epoch_batches=None)
    with pytest.raises(ConfigurationError, match=r"data\.max_seconds to at most the 30 s"):
        make_stream_module(source, max_seconds=None)
    with pytest.raises(
        ConfigurationError, match=r"_seconds is 30, but .*data\.max_seconds takes 31"
    ):
        make_stream_module(source, max_seconds=31.0)
    with pytest.raises(ConfigurationError, match=r"^data\.validation_batch_seconds is 2, but"):
        make_stream_module(source, max_seconds=4.0, validation_batch_seconds=2.0)


def _twice(source: SpeechSource, module: SpeechDataModule) -> None:
    """Make a stream's validation split hold each utterance twice."""
    feed = module._feeds["validation"]
    assert isinstance(feed, StreamFeed)
    name = "folders" if isinstance(source, Shards) else "splits"
    listed = getattr(source, name)
    listed["validation"] *= 2
    listed["test"] = listed["validation"]


def test_an_id_that_comes_twice_is_noticed_where_outputs_are_kept_by_ids(
    source: SpeechSource,
) -> None:
    """As what is to be predicted or cached, with both places and what to do."""
    module = make_stream_module(source)
    _twice(source, module)
    again = make_stream_module(source)
    again.setup("predict")
    shards = isinstance(source, Shards)
    place = r"recording\.000000\.tar" if shards else "part validation-0 of the dataset"
    fix = "pack them again" if shards else r"set data\.source\.id_column"
    message = f"{place}.* holds? .*utterance .*: {fix}|{place}.* both hold an utterance .*: {fix}"
    with pytest.raises(DataError, match=message):
        list(again.predict_dataloader())
    utterances, _ = again.utterances_once("validation")
    with pytest.raises(DataError, match=message):
        list(utterances)

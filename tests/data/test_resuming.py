"""Going on from the middle of an epoch: the same batches and counts as if it had not been cut."""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path

import pytest
from torch import Tensor

from interstack.data import LibriSpeechFolder, SpeechDataModule, SpeechSource
from interstack.data.audio import Decoder, Utterance
from interstack.data.loader import TrainingLoader
from tests.data.corpora import (
    SPEECH,
    equal_batches,
    files_of,
    hub_over,
    make_data_module,
    make_stream_module,
    shards_in,
)

_EPOCH_BATCHES = 9
_SETTINGS = {"batch_seconds": 20.0, "max_seconds": 3.0}  # crops, and several batches


@pytest.fixture(params=["folder", "shards", "hub"])
def source(request: pytest.FixtureRequest) -> SpeechSource:
    """Each kind of source over the embedded speech."""
    if request.param == "folder":
        return LibriSpeechFolder(SPEECH)
    if request.param == "shards":
        return shards_in(request.getfixturevalue("packed"))
    return hub_over(request.getfixturevalue("hub_folder"))


@pytest.fixture
def shards(packed: Path) -> SpeechSource:
    """Streamed speech."""
    return shards_in(packed)


def _module(source: SpeechSource, **settings: object) -> SpeechDataModule:
    epoch = {} if isinstance(source, LibriSpeechFolder) else {"epoch_batches": _EPOCH_BATCHES}
    return make_data_module(source, **_SETTINGS | epoch | settings)


def _loader(
    source: SpeechSource, rank: int = 0, world_size: int = 1, **kind: int
) -> TrainingLoader:
    """Makes the loader of epoch 1, with a data module of its own as in another process."""
    feed = _module(source)._feeds["train"]
    arguments = {"epoch": 1, "rank": rank, "world_size": world_size} | kind
    return TrainingLoader(feed, **arguments)


def _resumed(loader: TrainingLoader, state: dict[str, int]) -> TrainingLoader:
    """Loads a state as it comes out of a file."""
    loader.load_state_dict(json.loads(json.dumps(state)))
    return loader


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2)])
def test_an_epoch_goes_on_at_any_batch(source: SpeechSource, rank: int, world_size: int) -> None:
    """Same utterances, same crops, same bits, on every rank."""
    place = {"rank": rank, "world_size": world_size}
    whole = list(_loader(source, **place))
    state = _loader(source, **place).state_dict()
    assert state["num_batches"] == len(whole) > 8
    for first in (1, 2, len(whole) // 2, len(whole) - 1, len(whole)):
        rest = _resumed(_loader(source, **place), state | {"first_batch": first})
        assert len(rest) == len(whole)  # Lightning adds what is done to what it counts
        assert equal_batches(whole[first:], rest)


@pytest.mark.parametrize("first", [2, 5])
def test_workers_go_on_together(source: SpeechSource, first: int) -> None:
    """Two workers take up the parts that they had, whichever of them is next."""
    whole = list(islice(_loader(source, num_workers=2), _EPOCH_BATCHES))
    state = _loader(source, num_workers=2).state_dict() | {"first_batch": first}
    rest = _resumed(_loader(source, num_workers=2), state)
    assert equal_batches(whole[first:], islice(rest, _EPOCH_BATCHES - first))


def test_an_epoch_can_be_cut_twice(source: SpeechSource) -> None:
    """The place counts from the epoch's beginning, not from the last resume."""
    whole = list(_loader(source))
    first = _loader(source)
    batches = list(islice(first, 3))
    assert first.state_dict()["first_batch"] == 3
    second = _resumed(_loader(source), first.state_dict())
    assert second.state_dict() == first.state_dict()
    batches += islice(second, 2)
    assert second.state_dict()["first_batch"] == 5
    batches += _resumed(_loader(source), second.state_dict())
    assert equal_batches(whole, batches)


def test_only_the_first_pass_is_cut_short(source: SpeechSource) -> None:
    """Nor does an iterator that is made and never used count as a pass; Lightning makes such."""
    loader = _loader(source)
    loader.load_state_dict(loader.state_dict() | {"first_batch": 4})
    iter(loader)
    assert len(list(loader)) == len(loader) - 4
    assert len(list(loader)) == len(loader)
    assert loader.state_dict()["first_batch"] == len(loader)


def test_what_is_done_is_not_decoded_again(
    source: SpeechSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the utterances of the rest are; resuming late costs no more than resuming early."""
    loader = _loader(source)
    whole = list(loader)
    decoded = []
    decode = Decoder.__call__

    def noting(self: Decoder, utterance: Utterance) -> Tensor:
        decoded.append(utterance.id)
        return decode(self, utterance)

    monkeypatch.setattr(Decoder, "__call__", noting)
    loader.load_state_dict(loader.state_dict() | {"first_batch": 6})
    list(loader)
    assert decoded == [id_ for batch in whole[6:] for id_ in batch.ids]


def test_a_folder_does_not_even_touch_the_files_that_are_done(corpus: Path) -> None:
    """They may be gone."""
    loader = make_data_module(corpus, **_SETTINGS).train_dataloader()
    whole = list(loader)
    done = {id_ for batch in whole[:3] for id_ in batch.ids}
    for file in files_of(corpus):
        if file.stem in done:
            file.unlink()
    loader.load_state_dict(loader.state_dict() | {"first_batch": 3})
    assert equal_batches(whole[3:], loader)


@pytest.mark.parametrize(("before", "now"), [(2, 0), (0, 2), (2, 3)])
def test_a_stream_keeps_the_number_of_workers_its_start_had(
    shards: SpeechSource, before: int, now: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its batches depend on them; one worker and none read alike."""
    begun = _loader(shards, num_workers=before)
    whole = list(begun)
    loader = _loader(shards, num_workers=now)
    with caplog.at_level(logging.INFO, logger="interstack"):
        _resumed(loader, begun.state_dict() | {"first_batch": 5})
    assert f"epoch 1 is read by {max(1, before)} workers, as its start was" in caplog.text
    assert equal_batches(whole[5:], loader)
    again = _resumed(_loader(shards, num_workers=now), loader.state_dict() | {"first_batch": 7})
    assert equal_batches(whole[7:], again)


def test_a_folder_takes_any_number_of_workers(caplog: pytest.LogCaptureFixture) -> None:
    """Its batches don't depend on them."""
    source = LibriSpeechFolder(SPEECH)
    begun, loader = _loader(source), _loader(source, num_workers=2)
    with caplog.at_level(logging.INFO, logger="interstack"):
        _resumed(loader, begun.state_dict() | {"first_batch": 5})
    assert not caplog.text
    assert loader.num_workers == 2
    assert equal_batches(list(begun)[5:], loader)


def test_on_another_number_of_ranks_only_the_place_counts(shards: SpeechSource) -> None:
    """The batches are others anyway, so the workers are those of now; the place is bounded."""
    state = _loader(shards, world_size=2, num_workers=2).state_dict()
    loader = _resumed(_loader(shards), state | {"first_batch": 3})
    assert loader.num_workers == 0
    assert equal_batches(list(_loader(shards))[3:], loader)
    far = _resumed(_loader(shards), state | {"first_batch": 10_000, "num_batches": 20_000})
    assert far.state_dict()["first_batch"] == _EPOCH_BATCHES
    assert list(far) == []


def test_the_state_of_another_epoch_is_ignored(source: SpeechSource) -> None:
    """It was over when the checkpoint was written; this one begins at its start."""
    state = _loader(source, epoch=0).state_dict() | {"first_batch": 5, "num_workers": 7}
    loader = _resumed(_loader(source), state)
    assert loader.state_dict() == _loader(source).state_dict()
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_batches_of_an_epoch_are_known_for_any_number_of_ranks(
    source: SpeechSource, world_size: int
) -> None:
    """Before there is a trainer, and the same for every rank and epoch."""
    module = _module(source)
    expected = module.num_training_batches(world_size)
    for epoch, rank in ((0, 0), (1, world_size - 1)):
        loader = TrainingLoader(
            module._feeds["train"], epoch=epoch, rank=rank, world_size=world_size
        )
        assert len(loader) == expected
    if not isinstance(source, LibriSpeechFolder):
        assert expected == _EPOCH_BATCHES


def test_a_batch_of_nothing_but_corrupt_audio_is_replaced_by_the_same(corpus: Path) -> None:
    """The last one by the epoch's first, also where the epoch was cut in between."""
    loader = make_data_module(corpus, on_corrupt="skip").train_dataloader()
    last = {utterance.id for utterance in loader.dataset.batches[-1]}
    for file in files_of(corpus):
        if file.stem in last:
            file.write_bytes(b"")
    whole = list(loader)
    assert whole[-1].ids == whole[0].ids
    loader.load_state_dict(loader.state_dict() | {"first_batch": 2})
    assert equal_batches(whole[2:], loader)


def _cut(module: SpeechDataModule, first: int) -> tuple[dict[str, int], dict[str, int]]:
    """Loads `first` batches and one more in hand, and returns both states, as a checkpoint does."""
    loader = module.train_dataloader()
    in_hand = iter(loader)
    list(islice(in_hand, first + 1))
    counts = module.state_dict()
    assert list(counts) == ["skipped", "too_short"]
    return counts, loader.state_dict() | {"first_batch": first}


def _go_on(
    module: SpeechDataModule, counts: dict[str, int], place: dict[str, int]
) -> SpeechDataModule:
    """Loads both states and goes on to the end of the epoch."""
    module.load_state_dict(counts)
    list(_resumed(module.train_dataloader(), place))
    return module


def _left_out(module: SpeechDataModule) -> tuple[float, float]:
    return module.report()["skipped"], module.report()["too_short"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_counts_of_a_folder_survive(corpus: Path, num_workers: int) -> None:
    """No corrupt file is counted twice or forgotten, wherever the cut is."""
    modules = [
        make_data_module(corpus, num_workers=num_workers, on_corrupt="skip") for _ in range(9)
    ]
    broken = files_of(corpus)[::4]
    for file in broken:
        file.write_bytes(file.read_bytes()[:-2000])
    uninterrupted = modules.pop()
    assert len(list(uninterrupted.train_dataloader())) == uninterrupted.num_training_batches(1) > 5
    assert _left_out(uninterrupted)[0] >= len(broken)
    for first in (0, 1, 2, 4):
        counts, place = _cut(modules.pop(), first)
        resumed = _go_on(modules.pop(), counts, place)
        assert _left_out(resumed) == _left_out(uninterrupted)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_counts_of_a_stream_survive(shards: SpeechSource, num_workers: int) -> None:
    """Utterances too short are met again on the way to the place, and not counted again."""
    settings = {"min_seconds": 2.0, "num_workers": num_workers, "batch_seconds": 20.0}
    uninterrupted = make_stream_module(shards, **settings)
    list(uninterrupted.train_dataloader())
    assert _left_out(uninterrupted)[1] > 0
    for first in (0, 1, 7, 11):
        counts, place = _cut(make_stream_module(shards, **settings), first)
        resumed = _go_on(make_stream_module(shards, **settings), counts, place)
        assert _left_out(resumed) == _left_out(uninterrupted)

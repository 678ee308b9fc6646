"""The data module over the embedded speech: its batches, epochs, ranks, workers and counts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from interstack.constants import SAMPLE_RATE
from interstack.data import LibriSpeechFolder, SpeechDataModule
from interstack.data.workers import prepare_worker
from interstack.errors import ConfigurationError, DataError
from tests.data.corpora import SPEECH, equal_batches, files_of, ids_of, make_data_module


def test_batches_keep_the_budget_and_waste_little() -> None:
    """Padding included, no batch exceeds its seconds; on average it is nearly full of speech."""
    loader = make_data_module(SPEECH, batch_seconds=20.0, max_seconds=5.0).train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)
    padded = [batch.waveforms.numel() / SAMPLE_RATE for batch in batches]
    valid = [batch.seconds.item() for batch in batches]
    assert max(padded) <= 20.0
    assert sum(valid) / sum(padded) > 0.9
    assert sum(valid) / len(batches) > 0.75 * 20.0
    assert max(batch.waveforms.shape[1] for batch in batches) <= 5.0 * SAMPLE_RATE


def test_waveforms_are_padded_speech() -> None:
    """Each row is sound up to its end, in range, and silent after."""
    for batch in make_data_module(SPEECH).val_dataloader():
        assert batch.waveforms.dtype == torch.float32
        assert batch.waveforms.abs().max() <= 1
        assert batch.waveforms.shape == (len(batch.ids), int(batch.num_samples.max()))
        for waveform, length in zip(batch.waveforms, batch.num_samples, strict=True):
            assert waveform[:length].std() > 1e-3
            assert not waveform[length:].any()


def test_ranks_share_an_epoch_evenly_and_without_overlap() -> None:
    """Three ranks get as many batches each, and every utterance is on one of them."""
    feed = make_data_module(SPEECH)._feeds["train"]
    shares = [feed.training(epoch=1, rank=rank, world_size=3) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    ids = [utterance.id for share in shares for batch in share.batches for utterance in batch]
    assert sorted(ids) == [file.stem for file in files_of(SPEECH)]
    evaluated = [feed.evaluation(rank=rank, world_size=3) for rank in range(3)]
    assert len({len(share) for share in evaluated}) == 1
    ids = [utterance.id for share in evaluated for batch in share.batches for utterance in batch]
    assert sorted(ids) == [file.stem for file in files_of(SPEECH)]


def test_workers_change_nothing_and_leave_the_global_random_state() -> None:
    """Two workers deliver what none does, crops and order included."""
    alone = make_data_module(SPEECH, max_seconds=3.0)
    helped = make_data_module(SPEECH, max_seconds=3.0, num_workers=2)
    before = torch.get_rng_state()
    assert equal_batches(alone.train_dataloader(), helped.train_dataloader())
    assert torch.get_rng_state().equal(before)


@pytest.mark.slow
def test_spawned_workers_serve_as_well(corpus: Path) -> None:
    """Everything that a worker needs can be sent to a fresh process."""
    module = make_data_module(corpus, on_corrupt="skip")
    dataset = module.train_dataloader().dataset
    spawned = DataLoader(
        dataset,
        batch_size=None,
        num_workers=1,
        multiprocessing_context="spawn",
        worker_init_fn=prepare_worker,
    )
    batches = [delivery.batch for delivery in spawned]
    assert equal_batches(batches, module.train_dataloader())


def test_prediction_keeps_the_corpus_order_and_validation_begins_with_the_longest() -> None:
    """Predictions come as listed; what does not fit in memory fails in the first batch."""
    module = SpeechDataModule(LibriSpeechFolder(SPEECH), num_workers=0)
    module.setup("predict")
    module.setup("validate")
    names = [file.stem for file in files_of(SPEECH, "test-clean")]
    assert ids_of(module.predict_dataloader()) == names
    assert sorted(ids_of(module.test_dataloader())) == names
    longest = [int(batch.num_samples.max()) for batch in module.val_dataloader()]
    assert longest == sorted(longest, reverse=True)
    assert longest[0] / SAMPLE_RATE == module.longest_seconds("validation")


def test_prediction_is_whole_and_validation_and_test_log_what_they_crop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once for each split; an utterance longer than a batch is predicted in one of its own."""
    module = SpeechDataModule(
        LibriSpeechFolder(SPEECH), batch_seconds=5.0, max_seconds=3.0, num_workers=0
    )
    for stage in ("predict", "validate", "test"):
        module.setup(stage)
    with caplog.at_level(logging.WARNING):
        batches = list(module.predict_dataloader())
    assert not caplog.messages
    lengths = {file.stem: soundfile.info(file).frames for file in files_of(SPEECH, "test-clean")}
    found = {
        id_: int(length)
        for batch in batches
        for id_, length in zip(batch.ids, batch.num_samples, strict=True)
    }
    assert found == lengths
    assert module.window_samples == 5 * SAMPLE_RATE < max(lengths.values())
    for batch in batches:
        assert batch.waveforms.numel() <= 5 * SAMPLE_RATE or len(batch.ids) == 1
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            module.val_dataloader()
            module.test_dataloader()
    assert len(caplog.messages) == 2
    cropped = [length for length in lengths.values() if length > 3 * SAMPLE_RATE]
    lost = sum(cropped) / SAMPLE_RATE - 3 * len(cropped)
    assert (
        f"{len(cropped)} of {len(lengths)} utterances of test are cropped to data.max_seconds, "
        f"3 s, without {lost:.1f} of the split's" in caplog.messages[1]
    )
    assert "raise data.max_seconds" in caplog.messages[1]


def test_a_corrupt_batch_of_a_prediction_is_left_out_and_none_is_repeated(corpus: Path) -> None:
    """Elsewhere the next one stands in for it, so that ranks stay in step."""
    module = SpeechDataModule(
        LibriSpeechFolder(corpus, test=["dev-clean"]),
        batch_seconds=16.0,
        num_workers=0,
        on_corrupt="skip",
    )
    module.setup("predict")
    loader = module.predict_dataloader()
    victims = {utterance.id for utterance in loader.dataset.batches[1]}
    for file in files_of(corpus, "dev-clean"):
        if file.stem in victims:
            file.write_bytes(b"")
    names = [file.stem for file in files_of(corpus, "dev-clean")]
    assert ids_of(loader) == [name for name in names if name not in victims]
    assert module.report()["skipped"] == len(victims)


def test_the_report_counts_what_was_left_out(corpus: Path) -> None:
    """Utterances shorter than the least are left out, and said to be."""
    module = make_data_module(corpus)
    everything = len(files_of(corpus))
    assert module.report()["train/utterances"] == everything
    seconds = sorted(u.num_samples / SAMPLE_RATE for u in module._feeds["train"].utterances)
    picky = make_data_module(corpus, min_seconds=seconds[10])
    report = picky.report()
    assert report["train/utterances"] == everything - 10
    assert report["train/too_short"] == 10
    assert report["train/seconds"] == pytest.approx(sum(seconds[10:]))
    with pytest.raises(DataError, match=r"shorter than 99\.0 s: lower data\.min_seconds"):
        make_data_module(corpus, min_seconds=99.0, max_seconds=None)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_audio_that_turns_corrupt_in_training_is_named(corpus: Path, num_workers: int) -> None:
    """The error of a worker arrives whole and plain, without its traceback in the message."""
    module = make_data_module(corpus, num_workers=num_workers)
    victim = files_of(corpus)[3]
    victim.write_bytes(victim.read_bytes()[:-2000])
    with pytest.raises(DataError, match=victim.name) as caught:
        list(module.train_dataloader())
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_audio_that_turns_corrupt_can_be_skipped(
    corpus: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of its batch is there, the skipped are counted, and only the first is told of."""
    module = make_data_module(corpus, num_workers=num_workers, on_corrupt="skip")
    victims = files_of(corpus)[3:6]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:-2000])
    with caplog.at_level(logging.WARNING):
        batches = list(module.train_dataloader())
    left = {file.stem for file in files_of(corpus)} - {victim.stem for victim in victims}
    assert set(ids_of(batches)) == left
    assert module.report()["skipped"] == 3
    assert len(caplog.messages) == 1
    assert "Skipped: " in caplog.messages[0]


def test_a_batch_of_nothing_but_corrupt_audio_is_replaced(corpus: Path) -> None:
    """Every rank takes as many steps as planned, so a batch can't just vanish."""
    module = make_data_module(corpus, batch_seconds=16.0, on_corrupt="skip")
    loader = module.train_dataloader()
    first = {utterance.id for utterance in loader.dataset.batches[0]}
    for file in files_of(corpus):
        if file.stem in first:
            file.write_bytes(b"")
    batches = list(loader)
    assert len(batches) == len(loader)
    assert batches[0].ids == batches[1].ids
    assert not first & set(ids_of(batches))


def test_nothing_but_corrupt_audio_ends_the_run(corpus: Path) -> None:
    """Skipping has an end, sooner where there is more to skip."""
    files = files_of(corpus)
    few, many = 20, len(files)
    for file in files[few:]:
        file.rename(file.with_suffix(".kept"))
    small = make_data_module(corpus, on_corrupt="skip")
    for file in files[few:]:
        file.with_suffix(".kept").rename(file)
    large = make_data_module(corpus, on_corrupt="skip")
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of \d+ batches can be decoded"):
        list(small.train_dataloader())
    assert many > 32
    with pytest.raises(DataError, match=r"32 utterances in a row .* data are still there; .*flac"):
        list(large.train_dataloader())


def test_utterances_longer_than_a_batch_are_refused_by_name(corpus: Path) -> None:
    """Before training, with both settings that would mend it."""
    with pytest.raises(ConfigurationError, match=r"^data\.batch_seconds is 1, but .*\.flac takes"):
        make_data_module(corpus, batch_seconds=1.0)
    message = r"^data\.validation_batch_seconds is 1, but .*: raise data\.validation_batch_seconds"
    with pytest.raises(ConfigurationError, match=message):
        make_data_module(corpus, batch_seconds=60.0, validation_batch_seconds=1.0)
    make_data_module(corpus, batch_seconds=1.0, max_seconds=1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_seconds", 0.0),
        ("validation_batch_seconds", 0.0),
        ("max_seconds", 0.1),
        ("min_seconds", -1.0),
        ("num_buckets", 0),
        ("num_workers", -1),
        ("seed", -1),
        ("epoch_batches", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigurationError, match=rf"data\.{name} is {value}"):
        SpeechDataModule(LibriSpeechFolder(SPEECH), **{name: value})


def test_what_was_left_out_is_reported_at_the_end(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A corrupt file under `skip` shows up in the closing count."""
    broken = sorted((corpus / "LibriSpeech" / "train-clean-100").rglob("*.flac"))[0]
    broken.write_bytes(b"")
    source = LibriSpeechFolder(str(corpus), train=["train-clean-100"])
    data = SpeechDataModule(source, on_corrupt="skip", num_workers=0)
    data.setup("fit")
    with caplog.at_level("INFO", logger="interstack.data.datamodule"):
        data.teardown("fit")
    assert "train/corrupt 1" in caplog.text

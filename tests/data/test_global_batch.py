"""A recipe's global batch: the same utterances in every optimizer step on any number of ranks."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from interstack.checkpointing.callback import RUN_KEY, Checkpoints
from interstack.constants import SAMPLE_RATE
from interstack.data import SpeechDataModule
from interstack.data.global_batch import BatchSplit, set_up_accumulation, split_global_batch
from interstack.errors import ConfigurationError, DataError
from tests.data.corpora import EVERYTHING, SPEECH, make_data_module, shards_in

GLOBAL = 48.0


def module_on(world_size: int, most: float, **settings: Any) -> SpeechDataModule:  # noqa: ANN401
    """A data module of a run on so many ranks, of which each holds so many seconds at once."""
    module = SpeechDataModule(
        settings.pop("source", None) or make_data_module(SPEECH).source,
        batch_seconds=most,
        num_workers=0,
        **{"global_batch_seconds": GLOBAL, "max_seconds": 4.0} | settings,
    )
    module.planned_world_size = world_size
    module.setup("fit")
    return module


def steps_of(module: SpeechDataModule, epoch: int = 1) -> list[set[str]]:
    """The utterances of every optimizer step, over all ranks."""
    split = module.split
    assert split is not None
    feed = module._feeds["train"]
    ranks = []
    for rank in range(split.world_size):
        batches: Any = feed.training(epoch, rank, split.world_size)
        ids = [[utterance.id for utterance in batch] for batch in batches.batches]
        assert len(ids) == module.num_training_batches(split.world_size)
        ranks.append(ids)
    window = split.micro_batches
    assert len(ranks[0]) % window == 0
    return [
        {name for ids in ranks for batch in ids[step : step + window] for name in batch}
        for step in range(0, len(ranks[0]), window)
    ]


@pytest.mark.parametrize(("world_size", "most"), [(1, 12.0), (2, 12.0), (2, 13.9), (4, 400.0)])
def test_a_step_has_the_same_utterances_however_it_is_divided(world_size: int, most: float) -> None:
    """And an epoch as many steps, in the same order, with every utterance once."""
    reference = steps_of(module_on(4, 12.0))
    steps = steps_of(module_on(world_size, most))
    assert steps == reference
    assert sum(map(len, steps)) == len(EVERYTHING)
    assert set().union(*steps) == EVERYTHING
    assert steps_of(module_on(world_size, most), epoch=2) != steps


def test_no_batch_of_a_rank_exceeds_its_part_of_the_global_batch() -> None:
    """Padding included; and on average a step is nearly as long as it is to be."""
    module = module_on(1, 20.0)
    sizes = [batch.waveforms.numel() / SAMPLE_RATE for batch in module.train_dataloader()]
    assert module.split == BatchSplit(GLOBAL, 1, 3)
    assert max(sizes) <= GLOBAL / 3
    assert sum(sizes) / (len(sizes) / 3) > 0.75 * GLOBAL


@pytest.mark.parametrize(
    ("most", "world_size", "micro_batches"),
    [(100, 1, 8), (100, 2, 4), (100, 4, 2), (100, 8, 1), (100, 3, 3), (1000, 1, 1), (100, 16, 1)],
)
def test_there_are_no_more_micro_batches_than_memory_makes_necessary(
    most: float, world_size: int, micro_batches: int
) -> None:
    """The paper's batch on some machines."""
    split = split_global_batch(787, most, world_size)
    assert split.micro_batches == micro_batches
    assert split.seconds <= most
    assert split.seconds * world_size * micro_batches == pytest.approx(787)


@pytest.mark.parametrize(
    ("world_size", "most", "fix"),
    [
        (16, 12.0, r"use at most 12 devices, or raise data.global_batch_seconds"),
        (8, 5.0, r"raise data.batch_seconds to 6, or raise"),
    ],
)
def test_a_part_too_short_for_an_utterance_is_refused_with_what_to_change(
    world_size: int, most: float, fix: str
) -> None:
    """Naming the division."""
    with pytest.raises(
        ConfigurationError, match=rf"data.global_batch_seconds is 48.*takes 4 s.*{fix}"
    ):
        module_on(world_size, most)


def test_too_few_utterances_for_the_micro_batches_are_refused() -> None:
    """An epoch has to have a batch for each."""
    module = module_on(1, 4.0, global_batch_seconds=4000.0)
    with pytest.raises(DataError, match=r"1 ranks with 1000 micro-batches.*lower data.global_ba"):
        module.num_training_batches(1)


def trainer_like(**settings: Any) -> Any:  # noqa: ANN401
    """What of a Trainer is set."""
    usual = {"accumulate_grad_batches": 1, "limit_train_batches": 1.0, "val_check_interval": 1.0}
    return SimpleNamespace(**usual | settings)


def test_the_trainers_limits_count_global_batches() -> None:
    """Lightning counts a rank's micro-batches; shares of an epoch end with a step as well."""
    split = BatchSplit(787, 2, 4)
    trainer = trainer_like(limit_train_batches=10, val_check_interval=0.3)
    set_up_accumulation(trainer, split, batches=4 * 25)
    assert vars(trainer) == {
        "accumulate_grad_batches": 4,
        "limit_train_batches": 40,
        "val_check_interval": 4 * 3,
    }
    for name in ("limit_train_batches", "val_check_interval"):
        with pytest.raises(ConfigurationError, match=f"^trainer.{name} is 0.03, which .* is none"):
            set_up_accumulation(trainer_like(**{name: 0.03}), split, batches=4 * 25)
    untouched = trainer_like()
    set_up_accumulation(untouched, split, batches=4 * 25)
    assert (untouched.limit_train_batches, untouched.val_check_interval) == (1.0, 1.0)
    with pytest.raises(ConfigurationError, match=r"^trainer.accumulate_grad_batches is 2, but"):
        set_up_accumulation(trainer_like(accumulate_grad_batches=2), split, batches=100)


def test_a_trainer_accumulates_what_a_rank_can_not_hold_and_is_set_up_once() -> None:
    """Its loader knows the length of a window."""
    module = module_on(1, 20.0)
    module.planned_world_size = None
    module.trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        limit_train_batches=2, reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    for _ in range(2):
        module.setup("fit")
    assert module.trainer.accumulate_grad_batches == 3
    assert module.trainer.limit_train_batches == 6
    assert module.train_dataloader()._window == 3


def test_an_epoch_of_a_stream_has_so_many_global_batches(packed: Path) -> None:
    """Whatever the ranks, so that it has as many optimizer steps."""
    for world_size, window in ((1, 4), (2, 2)):
        module = module_on(world_size, 12.0, source=shards_in(packed), epoch_batches=5)
        assert module.num_training_batches(world_size) == 5 * window


def test_whether_a_saved_runs_epochs_are_the_same_is_known() -> None:
    """They depend on the number of a step's batches and on their budget alone."""
    module = module_on(2, 12.0)
    split = {"global_seconds": GLOBAL, "world_size": 4, "micro_batches": 1}
    assert module.same_epochs(4, split)
    assert not module.same_epochs(4, split | {"micro_batches": 2})
    assert not module.same_epochs(4, split | {"global_seconds": 50.0})
    assert not module.same_epochs(2, None)
    plain = make_data_module(SPEECH)
    assert plain.same_epochs(1, None)
    assert not plain.same_epochs(2, None)


@pytest.mark.parametrize(("most", "same"), [(12.0, True), (24.0, False)])
def test_a_run_goes_on_at_its_step_on_other_ranks(
    most: float, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same utterances where a step has as many batches; the run's log says which."""
    before, now = module_on(4, 12.0), module_on(1, most)
    assert before.split is not None
    assert now.split is not None
    steps, window = steps_of(before), now.split.micro_batches
    counters = {"current": {"processed": 2}}
    loops: dict[str, Any] = {
        "epoch_loop.batch_progress": counters,
        "state_dict": {"combined_loader": [{"first_batch": 2}]},
    }
    position = {"epoch": 1, "batch": 2, "num_batches": len(steps)}
    run = {
        "random_states": [],
        "world_size": 4,
        "split": vars(before.split),
        "position": position,
    }
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        datamodule=now,
        world_size=1,
        limit_train_batches=1.0,
        accumulate_grad_batches=window,
    )
    checkpoint = {RUN_KEY: run, "loops": {"fit_loop": loops}}
    with caplog.at_level(logging.WARNING, "interstack"):
        Checkpoints().on_load_checkpoint(trainer, Any, checkpoint)  # type: ignore[arg-type]
    first = loops["state_dict"]["combined_loader"][0]["first_batch"]
    assert first == counters["current"]["processed"]
    assert first % window == 0
    if same:
        assert first == 2 * window
        assert steps_of(now)[2:] == steps[2:]
    said = "so does the order of the data" if same else "the order of the data does not"
    assert said in caplog.text

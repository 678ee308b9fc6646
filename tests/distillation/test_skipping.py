"""Batches whose loss is not finite are skipped and counted where that is asked for."""

from __future__ import annotations

import copy
import csv
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from interstack.distillation.objective import ObjectiveConfig
from interstack.errors import DataError
from tests.distillation.small_runs import (
    SaveAfterFirstEpoch,
    make_module,
    make_trainer,
    training_batches,
)
from tests.distillation.spoilt_runs import NAN, skipping, spoilt, train


class Snapshots(L.Callback):
    """Keeps weights, optimizer state and gradients of every optimizer step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.optimizers: list[dict[str, Any]] = []
        self.gradients: list[list[Tensor]] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object
    ) -> None:
        """Keep the gradients of the window."""
        del trainer, optimizer
        self.gradients.append(
            [p.grad.clone() for p in pl_module.parameters() if p.grad is not None]
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """Keep what the step has left."""
        self.weights.append(copy.deepcopy(pl_module.state_dict()))
        self.optimizers.append(copy.deepcopy(trainer.optimizers[0].state_dict()["state"]))


def assert_equal(one: Any, other: Any) -> None:  # noqa: ANN401, nested dictionaries of tensors
    """Bit by bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """What is logged as a warning, also if another test has run the command line before."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("interstack")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_a_skipped_batch_leaves_no_trace_in_weights_and_moments(
    teacher_directory: Path, warned: list[str]
) -> None:
    """Not even by weight decay or clipping; steps go on, growth too, and the log names it."""
    batches = training_batches(6)
    batches[2] = spoilt(batches[2])
    snapshots = Snapshots()
    module = skipping(teacher_directory)
    trainer = make_trainer(snapshots, max_steps=6, gradient_clip_val=1.0)
    train(trainer, module, batches)
    assert_equal(snapshots.weights[2], snapshots.weights[1])
    assert_equal(snapshots.optimizers[2], snapshots.optimizers[1])
    for kept in (1, 4, 5):
        assert not torch.equal(
            *(snapshots.weights[step]["student.heads.0.weight"] for step in (kept, kept - 1))
        )
    assert (trainer.global_step, module.depth, module.non_finite.skipped) == (6, 4, 1)
    assert len(warned) == 1
    assert warned[0].startswith("step 2: the audio of bad is not finite")


def test_the_first_batch_can_be_skipped(teacher_directory: Path) -> None:
    """There is no optimizer state yet, and there is none afterwards."""
    batches = training_batches(2)
    snapshots = Snapshots()
    module = skipping(teacher_directory)
    train(
        make_trainer(snapshots, depths=(2,), max_steps=2), module, [spoilt(batches[0]), batches[1]]
    )
    first, second = snapshots.optimizers
    assert first == {}
    assert {float(state["step"]) for state in second.values()} == {1.0}


def test_a_skipped_batch_is_logged_as_a_count_and_not_as_a_loss(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """Neither NaN nor the loss of the batch before stands in its row."""
    batches = training_batches(4)
    batches[1] = spoilt(batches[1])
    trainer = make_trainer(
        max_steps=4, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1
    )
    train(trainer, skipping(teacher_directory), batches)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/skipped_batches"]]
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    assert [float(row["train/skipped_batches"]) for row in rows] == [0, 1, 1, 1]
    for name in ("train/loss", "train/loss_tap_2", "train/loss_tap_4"):
        assert [row[name] == "" for row in rows] == [False, True, False, False]
        assert all(float(row[name]) > 0 for row in rows if row[name])


def test_what_is_left_of_an_accumulation_window_counts_as_usual(teacher_directory: Path) -> None:
    """Its gradient is that of the clean batch as a step of its own; without any it is void."""
    good, other = training_batches(2)
    windows = {"one": [good, spoilt(other)], "none": [spoilt(good), spoilt(other)], "all": [good]}
    seen: dict[str, Snapshots] = {}
    for name, batches in windows.items():
        torch.manual_seed(0)
        seen[name] = Snapshots()
        module = skipping(teacher_directory)
        trainer = make_trainer(
            seen[name], depths=(2,), max_steps=1, accumulate_grad_batches=len(batches)
        )
        train(trainer, module, batches)
        assert trainer.global_step == 1
        assert module.non_finite.skipped == sum("bad" in batch.ids for batch in batches)
    (part,), (alone,) = seen["one"].gradients, seen["all"].gradients
    assert any(bool(gradient.any()) for gradient in alone)
    assert_equal(part, alone)
    assert not any(bool(gradient.any()) for gradient in seen["none"].gradients[0])
    assert_equal(seen["none"].weights[-1], seen["none"].weights[0])
    assert seen["none"].optimizers[-1] == {}


def test_skipping_does_not_go_on_with_weights_that_are_not_finite(teacher_directory: Path) -> None:
    """Every batch would be skipped to the end of the run."""

    class Break(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
        ) -> None:
            if trainer.global_step == 1:
                next(pl_module.parameters()).data.fill_(NAN)

    module = skipping(teacher_directory)
    with pytest.raises(DataError, match=r"^step 1: the student's weights .*learning_rate"):
        train(make_trainer(Break(), max_steps=4), module, training_batches(2))


def test_the_count_is_kept_and_a_resumed_run_may_skip_what_it_stopped_at(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """The policy is no hyper-parameter: a checkpoint's would overrule the command line's."""
    path = tmp_path / "cut.ckpt"

    batches = training_batches(3)
    batches[1] = spoilt(batches[1])
    train(
        make_trainer(SaveAfterFirstEpoch(path), max_epochs=2), skipping(teacher_directory), batches
    )
    saved = torch.load(path, weights_only=True)
    assert saved["interstack_skipped_batches"] == 1
    assert "non_finite" not in saved["hyper_parameters"]
    stopping = skipping(teacher_directory, non_finite="stop")
    with pytest.raises(DataError, match=r"^step 4: the audio of bad is not finite"):
        train(make_trainer(max_epochs=2), stopping, batches, path)
    resumed = skipping(teacher_directory)
    train(make_trainer(max_epochs=2), resumed, batches, path)
    assert resumed.non_finite.skipped == 2


# Channel statistics -----------------------------------------------------------------------------


def test_channels_are_not_measured_on_targets_that_are_not_finite(
    teacher_directory: Path, warned: list[str]
) -> None:
    """They stop the run by name, or are left out; otherwise every later loss would be NaN."""
    batches = training_batches(3)
    mixed = [batches[0], spoilt(batches[1]), batches[2]]
    objective = ObjectiveConfig(target_norm="channel", target_norm_seconds=600.0)
    stopping = make_module(teacher_directory, objective=objective)
    with pytest.raises(
        DataError, match=r"^training batch 1, for .* statistics: the audio of bad is"
    ):
        train(make_trainer(max_steps=2), stopping, mixed)
    measured = []
    for served in (mixed, [batches[0], batches[2]]):
        module = skipping(teacher_directory, objective=objective)
        train(make_trainer(max_steps=2), module, served)
        measured.append((module.target_norm.mean, module.target_norm.std))
    assert_equal(measured[0], measured[1])
    assert warned[0].startswith("training batch 1, for the targets' channel statistics: the audio")
    hopeless = skipping(teacher_directory, objective=objective)
    with pytest.raises(DataError, match="no training batch of the first 600 s has finite targets"):
        train(make_trainer(max_steps=2), hopeless, [spoilt(batches[0])])

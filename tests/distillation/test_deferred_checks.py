"""Where looking at losses is put off, as on a GPU, a bad batch does no harm and is named."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from interstack.distillation.module import Distillation
from interstack.distillation.nan_guard import BatchLoss, NonFiniteBatches, NonFinitePolicy
from interstack.distillation.objective import TapSums
from interstack.distillation.optimizer import OptimizerConfig, make_optimizer
from interstack.errors import DataError
from tests.distillation.small_runs import make_module, make_trainer, training_batches
from tests.distillation.spoilt_runs import skipping, spoilt, train


class Trail(L.Callback):
    """Keeps the weights and the optimizer's state after every step."""

    def __init__(self) -> None:
        self.steps = 0
        self.weights: list[dict[str, Tensor]] = []
        self.moments: list[list[Tensor]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """Keep them."""
        self.steps = trainer.global_step
        self.weights.append({name: each.clone() for name, each in pl_module.state_dict().items()})
        states = trainer.optimizers[0].state.values()
        self.moments.append([each.clone() for state in states for each in state.values()])


def patient(teacher_directory: Path, patience: int = 32) -> Distillation:
    """A module that stops at what is not finite, but looks only every so many batches."""
    module = skipping(teacher_directory, non_finite="stop")
    module.non_finite.patience = patience
    return module


def assert_equal(one: object, other: object) -> None:
    """Bit by bit."""
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_clean_run_is_the_same_with_fewer_looks(teacher_directory: Path) -> None:
    """Also through a growth."""
    trails = []
    for patience in (1, 4):
        torch.manual_seed(0)
        trails.append(Trail())
        trainer = make_trainer(trails[-1], max_steps=6, gradient_clip_val=1.0)
        train(trainer, patient(teacher_directory, patience), training_batches(3))
    assert_equal(trails[0].weights, trails[1].weights)
    assert_equal(trails[0].moments, trails[1].moments)


def test_from_a_bad_batch_on_nothing_changes_until_it_is_found(teacher_directory: Path) -> None:
    """Neither weights nor moments nor step counts; then step and utterance are named."""
    batches = training_batches(6)
    batches[2] = spoilt(batches[2])
    trail, module = Trail(), patient(teacher_directory)
    with pytest.raises(
        DataError, match=r"^step 2: the audio of bad is not.*model\.non_finite skip continues"
    ):
        train(make_trainer(trail, depths=(2,), max_steps=6, limit_val_batches=0), module, batches)
    assert trail.steps == 6  # found when training ended
    assert not torch.equal(*(trail.weights[step]["student.heads.0.bias"] for step in (0, 1)))
    for step in (2, 5):
        assert_equal(trail.weights[step], trail.weights[1])
        assert_equal(trail.moments[step], trail.moments[1])


@pytest.mark.parametrize(("patience", "steps"), [(4, 3), (2, 3), (1, 2)])
def test_so_many_batches_wait_at_most(patience: int, steps: int, teacher_directory: Path) -> None:
    """In the third step of a pair, or the last of four."""
    batches = training_batches(6)
    batches[2] = spoilt(batches[2])
    trail, module = Trail(), patient(teacher_directory, patience)
    with pytest.raises(DataError, match=r"^step 2: the audio of bad"):
        train(make_trainer(trail, depths=(2,), max_steps=6), module, batches)
    assert trail.steps == steps


def test_no_loss_is_logged_without_a_look(teacher_directory: Path, tmp_path: Path) -> None:
    """The loggers wait for the device there anyway."""
    batches = training_batches(6)
    batches[3] = spoilt(batches[3])
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1)
    trainer = make_trainer(depths=(2,), max_steps=6, logger=logger, log_every_n_steps=2)
    with pytest.raises(DataError, match=r"^step 3"):
        train(trainer, patient(teacher_directory), batches)
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1"]


def test_no_checkpoint_is_written_behind_a_bad_batch(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """It would say that more steps are done than are."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "3.ckpt")

    batches = training_batches(6)
    batches[1] = spoilt(batches[1])
    with pytest.raises(DataError, match=r"^step 1: the audio of bad"):
        train(make_trainer(Save(), depths=(2,), max_steps=6), patient(teacher_directory), batches)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"depths": (2, 4)}, 3), ({"depths": (2,), "val_check_interval": 2}, 2)],
)
def test_neither_growth_nor_validation_comes_behind_a_bad_batch(
    settings: dict[str, Any], steps: int, teacher_directory: Path
) -> None:
    """The student that met it is the one that is asked again."""
    batches = training_batches(6)
    batches[1] = spoilt(batches[1])
    module, trail = patient(teacher_directory), Trail()
    with pytest.raises(DataError, match=r"^step 1: the audio of bad"):
        train(make_trainer(trail, max_steps=6, **settings), module, batches)
    assert (trail.steps, module.depth) == (steps, 2)


def test_a_bad_batch_makes_its_accumulation_window_void(teacher_directory: Path) -> None:
    """Its gradient is in the sum of the window's."""
    good, other = training_batches(2)
    trail, module = Trail(), patient(teacher_directory)
    trainer = make_trainer(trail, depths=(2,), max_steps=1, accumulate_grad_batches=2)
    module.setup("fit")
    before = {name: each.clone() for name, each in module.state_dict().items()}
    with pytest.raises(DataError, match=r"^step 0: the audio of bad"):
        train(trainer, module, [spoilt(good), other])
    assert_equal(trail.weights[-1], before)


def test_what_a_fit_that_broke_off_has_left_is_not_held_against_the_next(
    teacher_directory: Path,
) -> None:
    """Here Ctrl-C came before the look."""

    class Break(L.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            raise KeyboardInterrupt

    module = patient(teacher_directory)
    batches = training_batches(2)
    with pytest.raises(SystemExit):
        train(make_trainer(Break(), max_steps=2), module, [spoilt(batches[0])])
    train(make_trainer(max_steps=2), module, batches)


def test_a_loss_that_is_finite_the_second_time_is_reported_too(teacher_directory: Path) -> None:
    """Dropout or a device may have made it so; the utterances are known."""
    module = make_module(teacher_directory)
    module.setup("fit")
    batch = training_batches(1)[0]
    mine = module.batch_loss(batch)
    bad = mine._replace(sums=TapSums(mine.sums.by_tap * float("nan"), mine.sums.num_frames))
    judge = NonFiniteBatches("stop")
    trainer: Any = SimpleNamespace(global_step=7, log_every_n_steps=50, optimizers=[])
    judge.patience = 4
    assert not judge.defer(bad, bad.sums.by_tap.sum(), trainer)
    with pytest.raises(DataError, match=r"^step 7: the loss of a, b was not finite, but is when"):
        judge.check(lambda _: mine)
    judge.check(lambda _: mine)  # nothing is left


def test_a_rank_whose_part_is_fine_points_to_the_other(teacher_directory: Path) -> None:
    """It need not compute anything again."""
    module = make_module(teacher_directory)
    module.setup("fit")
    mine = module.batch_loss(training_batches(1)[0])
    judge = NonFiniteBatches("stop")
    judge.patience = 4
    trainer: Any = SimpleNamespace(global_step=7, log_every_n_steps=50, optimizers=[])
    judge.defer(mine, torch.tensor(float("nan")), trainer)

    def again(_: object) -> BatchLoss:
        raise AssertionError

    with pytest.raises(DataError, match=r"^step 7: the loss of another rank is not finite"):
        judge.check(again)


@pytest.mark.parametrize(
    ("device", "policy", "scaler", "defers"),
    [
        ("cuda", "stop", None, True),
        ("cuda", "skip", None, False),
        ("cuda", "stop", "a GradScaler", False),
        ("cpu", "stop", None, False),
    ],
)
def test_looks_are_put_off_only_where_they_cost_and_nothing_is_lost(
    device: str, policy: NonFinitePolicy, scaler: str | None, defers: bool
) -> None:
    """A CPU has the answer at hand, a scaler waits by itself, skipping needs to know at once."""
    optimizer = make_optimizer(nn.Linear(1, 1).named_parameters(), OptimizerConfig())
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)),
        precision_plugin=SimpleNamespace(scaler=scaler),
        optimizers=[optimizer],
    )
    assert NonFiniteBatches(policy).defers(trainer) is defers
    trainer.optimizers = [torch.optim.SGD(nn.Linear(1, 1).parameters())]  # can't hold a step back
    assert not NonFiniteBatches(policy).defers(trainer)

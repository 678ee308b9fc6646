"""Averages of the weights, by Lightning's callbacks, in runs that grow; and callbacks refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    EMAWeightAveraging,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn

from interstack.distillation.averaging import averaged_weights
from interstack.distillation.module import Distillation
from interstack.distillation.objective import ObjectiveConfig
from interstack.errors import ConfigurationError
from interstack.growth.plan import GrowthPlan
from interstack.tracking.validation import validation_loss
from tests.distillation.small_runs import make_module, training_batches
from tests.growth.growing_runs import Saver, train

pytestmark = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")

DECAY: Final = 0.7
NUM_STEPS: Final = 8
"""Of a run that grows after half of them."""

Weights = dict[str, Tensor]


def weights_of(module: nn.Module) -> Weights:
    """All that a module would save, as it is at this moment."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: Weights, other: Weights) -> bool:
    """Whether all tensors are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def average_of(callback: WeightAveraging) -> Distillation:
    """What a callback has averaged."""
    assert callback._average_model is not None
    module = callback._average_model.module
    assert isinstance(module, Distillation)
    return module


class Reference(L.Callback):
    """Averages by itself, name by name; and notes the weights that are trained."""

    def __init__(self) -> None:
        self.average: Weights = {}
        self.trained: Weights = {}
        self.grown: list[GrowthPlan] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Take a step's weights into the average."""
        del trainer
        self.trained = weights_of(pl_module)
        for name, own in self.trained.items():
            before = self.average.get(name)
            self.average[name] = own if before is None else DECAY * before + (1 - DECAY) * own

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing yet."""

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Give every layer its parent's average; a fresh one has no other than itself."""
        del trainer
        self.grown.append(plan)
        own, before = weights_of(pl_module), self.average
        self.average = {name: each for name, each in before.items() if ".layers." not in name}
        for place, parent in enumerate(plan.parents):
            prefix = f"student.model.encoder.layers.{place}."
            for name in (name for name in own if name.startswith(prefix)):
                inherited = f"student.model.encoder.layers.{parent}.{name.removeprefix(prefix)}"
                fresh = plan.fresh_clones and parent in plan.parents[:place]
                self.average[name] = own[name] if fresh else before[inherited]


@pytest.mark.parametrize(
    ("operator", "policy"),
    [
        ("interleave", "reset"),
        ("interleave", "carry"),
        ("append", "clone"),
        ("gradual", "reset"),
        ("midas", "reset"),
        ("lidas", "clone"),
        ("random", "carry"),
    ],
)
def test_an_average_grows_with_the_student(
    operator: str, policy: str, teacher_directory: Path
) -> None:
    """To the bit what an average by name is, which follows the growth's plan by itself."""
    callback, reference = EMAWeightAveraging(decay=DECAY), Reference()
    module, _ = train(
        teacher_directory,
        callback,
        reference,
        growth={"operator": operator, "optimizer_state": policy},
        max_steps=NUM_STEPS,
    )
    assert len(reference.grown) == 1
    average = average_of(callback)
    assert (average.depth, average.lineage) == (4, module.lineage)
    assert average.student.hidden_taps == module.student.hidden_taps
    assert equal(weights_of(average), reference.average)
    assert equal(weights_of(module), reference.average)  # the run's result
    assert not equal(reference.trained, reference.average)
    assert average.teacher is module.teacher  # which is not copied


class EverySecond(WeightAveraging):
    """A user's own: the plain average of every second step."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Take steps 1, 3, 5, …."""
        del epoch_idx
        return step_idx is not None and step_idx % 2 == 1


class OwnAverage(L.Callback):
    """A user's average that is none of Lightning's."""

    def __init__(self) -> None:
        self.averaged: torch.optim.swa_utils.AveragedModel | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the module."""
        del trainer
        self.averaged = torch.optim.swa_utils.AveragedModel(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Average every step."""
        del trainer
        assert self.averaged is not None
        self.averaged.update_parameters(pl_module)


def test_a_users_own_average_grows_too(teacher_directory: Path) -> None:
    """A subclass of Lightning's, which is the run's result, and a callback of another kind."""
    seen: list[Weights] = []

    class Note(L.Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:  # noqa: ANN401
            seen.append(weights_of(arguments[1]))

    subclass, own = EverySecond(device="cpu"), OwnAverage()
    module, _ = train(teacher_directory, subclass, own, Note(), max_steps=NUM_STEPS)
    for kept, every in ((average_of(subclass), seen[1::2]), (own.averaged.module, seen)):  # type: ignore[union-attr]
        for name in ("student.heads.0.weight", "student.model.encoder.layer_norm.bias"):
            mean = torch.stack([weights[name] for weights in every]).mean(0)
            torch.testing.assert_close(kept.state_dict()[name], mean)  # type: ignore[union-attr]
        assert kept.depth == 4  # type: ignore[union-attr]
    assert equal(weights_of(module), weights_of(average_of(subclass)))


# Checkpoints ------------------------------------------------------------------------------------


def differing(one: Any, other: Any, name: str = "") -> list[str]:  # noqa: ANN401
    """Name what differs in two checkpoints."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [d for k in keys for d in differing(one.get(k), other.get(k), f"{name}/{k}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for pair in zip(one, other, strict=True) for d in differing(*pair, name)]
    same = torch.equal(one, other) if isinstance(one, Tensor) else one == other
    return [] if same else [name]


STATES: Final = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")


@pytest.mark.parametrize("cut", [2, 4, 6], ids=["before growth", "at growth", "after growth"])
def test_a_resumed_run_ends_as_one_that_was_never_cut(
    cut: int, teacher_directory: Path, tmp_path: Path
) -> None:
    """Weights, moments and averages; in a module that begins at another depth, if grown."""
    (tmp_path / "again").mkdir()
    train(teacher_directory, EMAWeightAveraging(), Saver(tmp_path), max_steps=NUM_STEPS)
    torch.manual_seed(5)
    train(
        teacher_directory,
        EMAWeightAveraging(),
        Saver(tmp_path / "again"),
        checkpoint=tmp_path / f"{cut}.ckpt",
        max_steps=NUM_STEPS,
    )
    whole, resumed = (torch.load(each / "8.ckpt") for each in (tmp_path, tmp_path / "again"))
    for state in STATES:
        assert differing(whole[state], resumed[state]) == []
    assert not equal(whole["state_dict"], whole["current_model_state"])


def test_a_run_that_ended_early_goes_on_with_its_own_weights(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """Lightning gives the module its average when training ends; the checkpoint has both."""
    (tmp_path / "again").mkdir()
    train(teacher_directory, EMAWeightAveraging(), Saver(tmp_path), max_steps=NUM_STEPS)

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:  # noqa: ANN401
            trainer.should_stop = trainer.global_step == 6

        def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:  # noqa: ANN401
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    torch.manual_seed(0)  # as the fixture has done for the run before
    callbacks = (EMAWeightAveraging(), Stop())
    module, _ = train(teacher_directory, *callbacks, max_steps=NUM_STEPS)
    early = torch.load(tmp_path / "early.ckpt")
    assert early["global_step"] == 6
    assert equal(early["state_dict"], weights_of(module))
    train(
        teacher_directory,
        EMAWeightAveraging(),
        Saver(tmp_path / "again"),
        checkpoint=tmp_path / "early.ckpt",
        max_steps=NUM_STEPS,
    )
    whole, resumed = (torch.load(each / "8.ckpt") for each in (tmp_path, tmp_path / "again"))
    for state in STATES:
        assert differing(whole[state], resumed[state]) == []


def test_a_run_is_not_resumed_without_its_average(teacher_directory: Path, tmp_path: Path) -> None:
    """The average would silently be trained instead of the weights; judging takes it as it is."""
    module, _ = train(teacher_directory, EMAWeightAveraging(), Saver(tmp_path), max_steps=2)
    with pytest.raises(ConfigurationError, match=r"trainer\.callbacks has no EMAWeightAveraging"):
        train(teacher_directory, checkpoint=tmp_path / "1.ckpt", max_steps=2)
    loaded = Distillation.load_from_checkpoint(tmp_path / "2.ckpt")
    assert equal(weights_of(loaded), weights_of(module))


# Validation -------------------------------------------------------------------------------------


def test_the_average_is_validated(teacher_directory: Path, tmp_path: Path) -> None:
    """By Lightning, and by what measures stages; and training is the same as without."""
    measured: list[float | None] = []
    batches = training_batches(2)

    class Measure(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert isinstance(pl_module, Distillation)
            trained = weights_of(pl_module)
            measured.append(validation_loss(trainer, pl_module))
            assert equal(weights_of(pl_module), trained)
            measured.append(float(trainer.callback_metrics["val/loss"]))

    callback = EMAWeightAveraging(decay=DECAY)
    module, _ = train(teacher_directory, callback, Measure(), Saver(tmp_path), max_steps=4)
    checkpoint = torch.load(tmp_path / "4.ckpt")
    losses = []
    for state in ("state_dict", "current_model_state"):
        module.load_state_dict(checkpoint[state])
        with torch.no_grad():
            loss = module.eval().batch_loss(batches[0])
        module.validation_loss.reset()
        module.validation_loss.update(loss.sums)
        losses.append(float(module.validation_loss.compute()[0]))
    assert measured[-2:] == pytest.approx([losses[0]] * 2, rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-5
    torch.manual_seed(0)
    plain, _ = train(teacher_directory, max_steps=4)
    assert equal(checkpoint["current_model_state"], weights_of(plain))


@pytest.mark.parametrize("kind", [EMAWeightAveraging, WeightAveraging])
def test_statistics_of_the_targets_are_not_averaged(
    kind: type[WeightAveraging], teacher_directory: Path, tmp_path: Path
) -> None:
    """They are measured once, after callbacks have copied the module, and are exact ever after."""
    objective = ObjectiveConfig(target_norm="channel", target_norm_seconds=2.0)
    module = make_module(teacher_directory, objective=objective)
    train(teacher_directory, kind(), Saver(tmp_path), module=module, max_steps=4)
    checkpoint = torch.load(tmp_path / "4.ckpt")
    saved, own = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert bool(saved["target_norm.measured"])
    for name in ("target_norm.mean", "target_norm.std"):
        assert torch.equal(saved[name], own[name])
        assert torch.equal(module.state_dict()[name], own[name])


def test_an_average_of_no_step_is_the_student(teacher_directory: Path, tmp_path: Path) -> None:
    """Not what the student was when the run began, where averaging starts late or never."""
    callback = EMAWeightAveraging(decay=DECAY, update_starting_at_step=100)
    module, _ = train(teacher_directory, callback, Saver(tmp_path), max_steps=NUM_STEPS)
    checkpoint = torch.load(tmp_path / "6.ckpt")
    assert equal(checkpoint["state_dict"], checkpoint["current_model_state"])
    assert "interstack_averaging" not in checkpoint
    torch.manual_seed(0)
    plain, _ = train(teacher_directory, max_steps=NUM_STEPS)
    assert equal(weights_of(module), weights_of(plain))


def test_a_module_can_be_fitted_once_more(teacher_directory: Path) -> None:
    """It is grown already, and the new average begins there."""
    module, _ = train(teacher_directory, EMAWeightAveraging(), max_steps=2)
    callback = EMAWeightAveraging(decay=DECAY)
    train(teacher_directory, callback, module=module, depths=(4,), max_steps=2)
    assert average_of(callback).depth == 4
    assert equal(weights_of(module), weights_of(average_of(callback)))


def test_without_an_average_nothing_is_swapped(teacher_directory: Path) -> None:
    """Nor added to the Trainer."""
    module, _ = train(teacher_directory, max_steps=2)
    before = weights_of(module)
    with averaged_weights(module.trainer, module):
        assert equal(weights_of(module), before)
    assert module.configure_callbacks() == []


# What can't work --------------------------------------------------------------------------------


class Unfreeze(BaseFinetuning):
    """A user's own."""

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        """Freeze the student."""
        assert isinstance(pl_module, Distillation)
        self.freeze(pl_module.student.layers)

    def finetune_function(
        self, pl_module: L.LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Never unfreeze it."""


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([StochasticWeightAveraging(1e-4)], r"StochasticWeightAveraging, .*model\.optimizer"),
        ([ModelPruning("l1_unstructured", amount=0.5)], r"ModelPruning, .*exported student"),
        ([BackboneFinetuning()], r"BackboneFinetuning, .*front_end shared"),
        ([Unfreeze()], r"Unfreeze, .*front_end shared"),
        (
            [EMAWeightAveraging(), EverySecond()],
            "EMAWeightAveraging and EverySecond, .*give one of them",
        ),
    ],
    ids=["SWA", "pruning", "backbone", "subclass", "two averages"],
)
def test_callbacks_that_can_not_work_are_refused_by_name(
    callbacks: list[L.Callback], message: str, teacher_directory: Path
) -> None:
    """In one line, before the teacher is loaded; depths that never grow make no difference."""
    module = make_module(teacher_directory)
    with pytest.raises(ConfigurationError, match=message) as refusal:
        train(teacher_directory, *callbacks, module=module, depths=(2,), max_steps=2)
    assert "\n" not in str(refusal.value)
    assert not hasattr(module, "student")

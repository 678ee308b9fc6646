"""Number formats: growth under autocast and gradient scaling, and a loss that is fp32 in each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation import module as module_file
from interstack.distillation.module import Distillation
from interstack.distillation.objective import ObjectiveConfig, TapSums, tap_sums
from interstack.distillation.optimizer import OptimizerConfig
from interstack.distillation.targets import TargetNorm
from interstack.errors import ConfigurationError
from interstack.models.config import TeacherConfig
from tests.distillation.small_runs import (
    SMALL,
    SaveAfterFirstEpoch,
    fit,
    make_batch,
    make_module,
    make_trainer,
    training_batches,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def scaled(**scaler: Any) -> dict[str, Any]:  # noqa: ANN401, GradScaler's
    """What gives a Trainer fp16 with a scaler; Lightning's own 16-mixed is bf16 on a CPU."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scaler))]}


FORMATS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "32-true": (FP32, {"precision": "32-true"}),
    "bf16-mixed": (BF16, {"precision": "bf16-mixed"}),
    "16-mixed": (FP16, scaled(init_scale=2.0**10)),
}


class Loss(NamedTuple):
    """What the loss was made of, and what came out."""

    predictions: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    mask: Tensor
    sums: TapSums


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Loss]:
    """Every loss that the module takes the sums of."""
    losses: list[Loss] = []

    def spy(
        predictions: Sequence[Tensor],
        targets: Sequence[Tensor],
        mask: Tensor,
        config: Any,  # noqa: ANN401
    ) -> TapSums:
        sums = tap_sums(predictions, targets, mask, config)
        losses.append(Loss(tuple(predictions), tuple(targets), mask, sums))
        return sums

    monkeypatch.setattr(module_file, "tap_sums", spy)
    return losses


class Watch(L.Callback):
    """Notes losses, scales, depths and weights of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.depths: list[int] = []
        self.scales: list[float] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """Note them."""
        assert isinstance(pl_module, Distillation)
        plugin: Any = trainer.precision_plugin
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.depths.append(pl_module.depth)
        self.weights.append(copy.deepcopy(pl_module.state_dict()))
        if getattr(plugin, "scaler", None) is not None:
            self.scales.append(plugin.scaler.get_scale())


def unlike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether any weight differs."""
    return any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["none", "layer_norm", "channel"])
def test_targets_and_loss_are_fp32_whatever_the_models_compute_in(
    precision: str,
    dtype: Any,  # noqa: ANN401, a Literal
    norm: Any,  # noqa: ANN401, a Literal
    teacher_directory: Path,
    spied: list[Loss],
) -> None:
    """Targets are the teacher's to the bit, and the difference is that of fp32 numbers."""
    batch = make_batch([clip for b in training_batches(1) for clip in b.waveforms[:, :9600]])
    computed_in, settings = FORMATS[precision]
    teacher = TeacherConfig(str(teacher_directory), (2, 4), dtype=dtype)
    objective = ObjectiveConfig(target_norm=norm)
    module = Distillation(teacher, SMALL, objective, initial_depth=2)
    fit(make_trainer(depths=(2,), max_steps=1, **settings), module, [batch])
    loss = spied[0]
    told = module.teacher(batch.waveforms, batch.num_samples).hidden_states
    expected = module.target_norm(told)
    for prediction, target, same in zip(loss.predictions, loss.targets, expected, strict=True):
        assert prediction.dtype == computed_in
        assert target.dtype == FP32
        assert torch.equal(target, same)
    assert loss.sums.by_tap.dtype == FP32
    for tap, (prediction, target) in enumerate(zip(loss.predictions, loss.targets, strict=True)):
        distance = (prediction.double() - target.double()).square().mean(-1)
        exact = distance[loss.mask].sum().item()
        assert loss.sums.by_tap[tap].item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer_norm", "channel"])
def test_the_target_norm_computes_in_fp32_on_half_precision_targets(norm: Any) -> None:  # noqa: ANN401
    """It does not rely on what the teacher hands over, nor on autocast being off."""
    target = torch.randn(2, 5, 16, dtype=BF16)
    normalise = TargetNorm(ObjectiveConfig(target_norm=norm), 1, 16)
    with torch.autocast("cpu", dtype=BF16):
        (mine,) = normalise([target])
    (expected,) = normalise([target.float()])
    assert mine.dtype == FP32
    assert torch.equal(mine, expected)


@pytest.mark.parametrize("precision", FORMATS)
def test_a_student_grows_and_learns_in_every_precision(
    precision: str, teacher_directory: Path
) -> None:
    """Weights, clones and moments stay fp32."""
    (batch,) = training_batches(1)
    module = make_module(teacher_directory, optimizer=OptimizerConfig(learning_rate=3e-3))
    watch = Watch()
    trainer = make_trainer(watch, max_steps=20, **FORMATS[precision][1])
    fit(trainer, module, [batch])
    assert watch.depths == [2] * 10 + [4] * 10
    assert watch.losses[9] < 0.95 * watch.losses[0]
    assert watch.losses[-1] < watch.losses[10]
    assert {parameter.dtype for parameter in module.parameters()} == {FP32}
    moments = [m for state in trainer.optimizers[0].state.values() for m in state.values()]
    assert {moment.dtype for moment in moments} == {FP32}


def test_gradients_that_overflow_skip_steps_until_the_scale_fits_and_the_run_goes_on(
    teacher_directory: Path,
) -> None:
    """The first steps change nothing but the scale; then the student learns, and grows."""
    (batch,) = training_batches(1)
    module = make_module(teacher_directory, optimizer=OptimizerConfig(learning_rate=3e-3))
    watch = Watch()
    trainer = make_trainer(
        watch, max_steps=12, **scaled(init_scale=2.0**40, backoff_factor=2.0**-8)
    )
    fit(trainer, module, [batch])
    assert watch.scales[:2] == [2.0**32, 2.0**24]
    assert not unlike(watch.weights[1], watch.weights[0])
    assert unlike(watch.weights[-2], watch.weights[-1])
    assert watch.scales[-1] == watch.scales[-2]
    assert (trainer.global_step, watch.depths[-1]) == (12, 4)
    assert all(bool(torch.isfinite(weight).all()) for weight in watch.weights[-1].values())


def test_the_scalers_state_survives_a_resume(teacher_directory: Path, tmp_path: Path) -> None:
    """A resumed run does not search for its scale again."""
    path = tmp_path / "cut.ckpt"

    batches = training_batches(2)
    doubling = scaled(init_scale=16.0, growth_interval=2)
    fit(
        make_trainer(SaveAfterFirstEpoch(path), max_epochs=2, **doubling),
        make_module(teacher_directory),
        batches,
    )
    state = torch.load(path, weights_only=True)["MixedPrecision"]
    assert (state["scale"], state["_growth_tracker"]) == (32.0, 0)
    watch = Watch()
    resumed = make_trainer(watch, max_epochs=2, **scaled(init_scale=1.0, growth_interval=2))
    fit(resumed, make_module(teacher_directory), batches, path)
    assert watch.scales == [32.0, 64.0]


def test_a_skipped_batch_leaves_weights_and_scale_alone_under_a_scaler(
    teacher_directory: Path,
) -> None:
    """The scaler sees gradients of zero, and steps an optimizer that has none."""
    batches = training_batches(3)
    batches[1].waveforms[0, 3000] = float("nan")
    teacher = TeacherConfig(str(teacher_directory), (2, 4))
    module = Distillation(teacher, SMALL, initial_depth=2, non_finite="skip")
    watch = Watch()
    trainer = make_trainer(watch, depths=(2,), max_steps=3, **scaled(init_scale=2.0**10))
    fit(trainer, module, batches)
    assert not unlike(watch.weights[1], watch.weights[0])
    assert unlike(watch.weights[2], watch.weights[1])
    assert watch.scales == [2.0**10] * 3
    states = trainer.optimizers[0].state.values()
    assert {float(state["step"]) for state in states} == {2.0}
    assert module.non_finite.skipped == 1


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_weights_in_another_format_than_fp32_are_refused(
    precision: Any,  # noqa: ANN401, a Literal
    teacher_directory: Path,
) -> None:
    """Before anything is loaded, with what to give instead."""
    batches: list[Batch] = training_batches(1)
    trainer = make_trainer(max_steps=4, precision=precision)
    with pytest.raises(ConfigurationError, match=f"{precision} .*32-true, bf16-mixed, 16-mixed"):
        fit(trainer, make_module(teacher_directory), batches)

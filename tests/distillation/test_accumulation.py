"""Accumulated batches weigh by their frames: a window's gradient and loss are one big batch's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.distillation.objective import ObjectiveConfig, ObjectiveKind
from tests.distillation.small_runs import make_batch, make_module, make_trainer
from tests.distillation.spoilt_runs import skipping, spoilt, train
from tests.models.families import read_speech

SECONDS = ((0.4,), (1.6, 0.9), (0.5, 0.6))
"""Utterances of the batches of a window, whose frames differ fivefold."""


class Steps(L.Callback):
    """Keeps the gradients of every optimizer step, and the loss and rate logged with it."""

    def __init__(self) -> None:
        self.gradients: list[list[Tensor]] = []
        self.losses: list[dict[str, float]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """Keep the gradients, before they are clipped."""
        found = [each.grad.clone() for each in pl_module.parameters() if each.grad is not None]
        self.gradients.append(found)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        """Keep what a logger would be given after a step."""
        del pl_module
        if not trainer.fit_loop._should_accumulate():
            logged = trainer.callback_metrics.items()
            self.losses.append({k: v.item() for k, v in logged if k.startswith("train/loss")})


def micro_batches() -> list[Batch]:
    """Batches of a window."""
    clips = read_speech(*(length for lengths in SECONDS for length in lengths))
    starts = [sum(map(len, SECONDS[:index])) for index in range(len(SECONDS))]
    return [
        make_batch(clips[start : start + len(lengths)])
        for start, lengths in zip(starts, SECONDS, strict=True)
    ]


def whole(batches: Sequence[Batch]) -> Batch:
    """All their utterances as one batch."""
    rows = [
        waveform[:length]
        for batch in batches
        for waveform, length in zip(batch.waveforms, batch.num_samples.tolist(), strict=True)
    ]
    return make_batch(rows)


def fit(
    module: Distillation,
    batches: Sequence[Batch],
    accumulate: int,
    **settings: Any,  # noqa: ANN401, the Trainer's
) -> Steps:
    """Train for one epoch, with every step logged."""
    steps = Steps()
    trainer = make_trainer(
        steps,
        depths=(2,),
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1,
        **{"max_epochs": 1} | settings,
    )
    train(trainer, module, batches)
    return steps


def fresh(teacher_directory: Path, kind: ObjectiveKind = "mse") -> Distillation:
    """The same module each time."""
    torch.manual_seed(0)
    return make_module(teacher_directory, objective=ObjectiveConfig(kind=kind))


def assert_alike(one: Steps, other: Steps, tolerance: float = 1e-4) -> None:
    """Gradients and logged losses, relatively to the largest gradient of a tensor."""
    assert len(one.gradients) == len(other.gradients)
    for mine, theirs in zip(one.gradients, other.gradients, strict=True):
        assert len(mine) == len(theirs)
        for ours, reference in zip(mine, theirs, strict=True):
            error = (ours - reference).abs().max()
            assert error <= tolerance * reference.abs().max() + 1e-7
    for mine_, theirs_ in zip(one.losses, other.losses, strict=True):
        assert set(mine_) == {"train/loss", "train/loss_tap_2", "train/loss_tap_4"}
        assert mine_ == pytest.approx(theirs_, rel=tolerance)


@pytest.mark.parametrize("kind", ["mse", "distilhubert"])
def test_a_window_trains_as_one_batch_of_all_its_utterances(
    kind: ObjectiveKind, teacher_directory: Path
) -> None:
    """Gradient and logged loss, though the first of its batches has a fifth of the frames."""
    batches = micro_batches()
    accumulated = fit(fresh(teacher_directory, kind), batches, 3)
    assert_alike(accumulated, fit(fresh(teacher_directory, kind), [whole(batches)], 1))


def test_an_epoch_s_last_incomplete_window_counts_by_its_own_frames(
    teacher_directory: Path,
) -> None:
    """Lightning divides by the length of a complete one."""
    batches = micro_batches()
    accumulated = fit(fresh(teacher_directory), batches, 2)
    merged = [whole(batches[:2]), batches[2]]
    assert len(accumulated.gradients) == 2
    assert_alike(accumulated, fit(fresh(teacher_directory), merged, 1))


def test_what_is_left_of_a_window_with_a_skipped_batch_is_averaged_over_its_own_frames(
    teacher_directory: Path,
) -> None:
    """Also where the skipped one is the window's first, or last."""
    batches = micro_batches()
    for bad in (0, 2):
        kept = [batch for number, batch in enumerate(batches) if number != bad]
        mixed = [spoilt(b) if number == bad else b for number, b in enumerate(batches)]
        torch.manual_seed(0)
        module = skipping(teacher_directory)
        accumulated = fit(module, mixed, 3)
        assert module.non_finite.skipped == 1
        torch.manual_seed(0)
        assert_alike(accumulated, fit(skipping(teacher_directory), [whole(kept)], 1))


def test_a_scaler_s_window_trains_as_one_batch_too(teacher_directory: Path) -> None:
    """In fp16, within what it rounds; the scale is gone before gradients are averaged."""
    batches = micro_batches()

    def scaled() -> dict[str, Any]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}

    accumulated = fit(fresh(teacher_directory), batches, 3, **scaled())
    assert_alike(accumulated, fit(fresh(teacher_directory), [whole(batches)], 1, **scaled()), 3e-2)


def test_waiting_with_looks_changes_nothing(teacher_directory: Path) -> None:
    """Bit by bit, as a GPU looks later."""
    steps = []
    for patience in (1, 32):
        module = fresh(teacher_directory)
        module.non_finite.patience = patience
        steps.append(fit(module, micro_batches(), 2))
    for mine, theirs in zip(steps[0].gradients, steps[1].gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert steps[0].losses == steps[1].losses


def test_a_window_has_one_learning_rate_where_epochs_measure_the_run(
    teacher_directory: Path,
) -> None:
    """That of its first batch, so that it does not depend on how a global batch is divided."""
    batches = [*micro_batches(), *micro_batches()]
    accumulated = fit(fresh(teacher_directory), batches, 3, max_epochs=2)
    merged = [whole(batches[:3]), whole(batches[3:])]
    assert accumulated.rates == fit(fresh(teacher_directory), merged, 1, max_epochs=2).rates
    assert len(set(accumulated.rates)) == 4

"""The Lightning callback that logs how a run goes: its pace, and what growing does to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.distillation.nan_guard import step_is_logged
from interstack.growth.callback import callbacks_of, growth_of
from interstack.growth.plan import GrowthPlan
from interstack.models.teacher import Teacher
from interstack.tracking.events import GROWTH_METRICS
from interstack.tracking.layer_similarity import measure_similarity
from interstack.tracking.lineage import block_positions
from interstack.tracking.loggers import RunLogger
from interstack.tracking.metrics import (
    AXES,
    POINT_METRICS,
    RunMeters,
    gradient_norms,
    layer_metrics,
    loss_metrics,
    point_figures,
)
from interstack.tracking.position import stage_number
from interstack.tracking.stages import StageRecorder, growth_summary, stage_summary
from interstack.tracking.step_timer import StepClock
from interstack.tracking.tolerant_loggers import tolerate_failures


class Dashboard(L.Callback):
    """Logs points, growth steps and layer similarities to every logger and to ``events.jsonl``.

    A point is a step at the Trainer's ``log_every_n_steps``; only there is anything read from the
    device, and the step timed part by part. Training is the same bit by bit with this callback and
    without. It has to come after the `StageRecorder`, whose counts and losses it logs.
    """

    def __init__(self) -> None:
        self._meters = RunMeters()
        self._module: Distillation | None = None  # while it trains, as the three below
        self._recorder: StageRecorder | None = None
        self._clock: StepClock | None = None
        self._logger: RunLogger | None = None
        self._is_point = False
        self._gradient_norm: Tensor | None = None
        self._layer_norms: Tensor | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let no logger end the run where a disk is full or a service out of reach."""
        del pl_module
        if stage == "fit" and trainer.is_global_zero:
            for logger in trainer.loggers:
                tolerate_failures(logger)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Announce the metrics to loggers, and start the clock."""
        self._detach()
        module = _distillation(pl_module)
        self._logger = RunLogger(trainer)
        losses = loss_metrics(module.student.teacher_taps)
        layers = layer_metrics(module.lineage)
        self._logger.define((*AXES, *losses, *POINT_METRICS, *GROWTH_METRICS, *layers))
        self._logger.catch_up()
        for report in module.precision_reports:
            self._logger.log("precision", **report.to_primitives())
        self._clock = StepClock(module.device)
        teacher = module.teacher
        self._clock.watch(
            teacher if isinstance(teacher, Teacher) else None,
            module.student,
            extracts_features=module.extracts_features,
        )
        self._module, self._recorder = module, _recorder(trainer)
        if trainer.global_step == 0:
            self._meters = RunMeters()
        self._skip_time()

    # Within a step ------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Begin to time the step, if a point is due after it."""
        del pl_module, batch, batch_idx
        self._is_point = step_is_logged(trainer)
        assert self._clock is not None
        self._clock.begin(self._is_point)

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """End the student's part."""
        del trainer, pl_module, loss
        if self._clock is not None:
            self._clock.mark("student_forward")

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the gradients' part."""
        del trainer, pl_module
        if self._clock is not None:
            self._clock.mark("backward")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take the gradients' norms, before they are clipped."""
        del trainer, optimizer
        if self._is_point:
            found = [each.grad for each in pl_module.parameters() if each.grad is not None]
            self._gradient_norm = torch.nn.utils.get_total_norm(found) if found else None
            self._layer_norms = gradient_norms(_distillation(pl_module).student)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count the step, and log a point if one is due."""
        del outputs, batch, batch_idx
        module = _distillation(pl_module)
        assert self._clock is not None
        parts = self._clock.end()
        if trainer.fit_loop._should_accumulate():
            return
        self._meters.add_step(module.latest_loss)
        if self._is_point:
            self._log_point(trainer, module, parts)

    # Between steps ------------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the axes beside the validation losses: W&B draws only what shares a row with them."""
        if self._logger is not None and not trainer.sanity_checking:
            self._read()
            axes = _on_device(self._meters.totals.axes, pl_module.device)
            pl_module.log_dict(axes, rank_zero_only=True)  # its clock, as everywhere

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave validation out of the time, and log its loss."""
        losses = _logged(trainer, "val/")
        if self._logger is not None and losses and not trainer.sanity_checking:
            depth = _distillation(pl_module).depth
            self._logger.log("validation", **self._meters.totals.axes, depth=depth, losses=losses)
        self._skip_time()

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the end of a stage."""
        self._log_stage(trainer, _distillation(pl_module))
        self._skip_time()

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Log the growth step: layers, and the validation loss before and after."""
        assert self._logger is not None
        module, growth = _distillation(pl_module), growth_of(trainer)
        operator = None if growth is None else growth.operator_name
        self._meters.spike.start()
        content = growth_summary(
            plan, operator, module.lineage, module.student.tap_layers, _recorder(trainer).stages
        )
        self._logger.define(layer_metrics(module.lineage))
        self._logger.log("growth", **self._meters.totals.axes, **content)
        self._skip_time()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the end of the last stage."""
        self._log_stage(trainer, _distillation(pl_module))
        self._detach()

    def on_exception(self, *_: object, **__: object) -> None:
        """Release the models."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues from; waits for the device."""
        self._read()
        return self._meters.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the meters of a resumed run."""
        self._meters = RunMeters.of_state(state_dict)

    # Events -------------------------------------------------------------------------------------

    def _log_point(
        self, trainer: L.Trainer, module: Distillation, parts: Mapping[str, float]
    ) -> None:
        assert self._logger is not None
        self._read()
        self._log_recovery()
        since, steps = self._meters.take_since()
        stage = stage_number(trainer, module.depth).number
        figures = point_figures(since, steps, parts, stage, self._gradient_norm, module.device)
        if self._layer_norms is not None:
            norms = self._layer_norms.tolist()
            figures |= dict(zip(layer_metrics(module.lineage), norms, strict=True))
        axes = self._meters.totals.axes
        module.log_dict(_on_device({**axes, **figures}, module.device))
        self._logger.log("point", **axes, **{**_logged(trainer, "train/"), **figures})

    def _log_recovery(self) -> None:
        """Log that the training loss is back where it was before the last growth step."""
        assert self._logger is not None
        spike = self._meters.spike
        if spike.is_unlogged:
            spike.is_unlogged = False
            losses = {"before": spike.before, "peak": spike.peak}
            axes, steps = self._meters.totals.axes, spike.recovered_after
            self._logger.log("recovery", **axes, **losses, after_steps=steps)

    def _log_stage(self, trainer: L.Trainer, module: Distillation) -> None:
        assert self._logger is not None
        self._read()
        self._log_recovery()
        summary = stage_summary(_recorder(trainer).stages[-1], self._meters.spike)
        self._logger.log("stage", **self._meters.totals.axes, **summary)
        similarity = measure_similarity(trainer, module) if trainer.is_global_zero else None
        if similarity is not None:
            names = [str(position) for position in block_positions(module.lineage)]
            maps = similarity.to_primitives()
            self._logger.log("similarity", depth=module.depth, layers=names, **maps)

    def _read(self) -> None:
        """Bring all counts up to date; waits for the device."""
        if self._module is not None and self._recorder is not None:
            self._meters.read(self._recorder, self._module)

    def _skip_time(self) -> None:
        """Leave what comes between two steps out of their time: validations, logging."""
        if self._recorder is not None:
            self._recorder.skip_time()
        if self._clock is not None:
            self._clock.skip_time()

    def _detach(self) -> None:
        self._module = self._recorder = self._logger = None
        if self._clock is not None:
            self._clock.unwatch()
            self._clock = None


def _on_device(figures: Mapping[str, float], device: torch.device) -> dict[str, Tensor]:
    """Fill figures in on a device, which a copy would wait for."""
    return {name: torch.full((), value, device=device) for name, value in figures.items()}


def _logged(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Return what the module has logged under names that begin alike; waits for the device."""
    logged = trainer.callback_metrics.items()
    return {name: float(value) for name, value in logged if name.startswith(prefix)}


def _recorder(trainer: L.Trainer) -> StageRecorder:
    """Return the callback whose counts the points have.

    Raises:
        TypeError: If there is none.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, StageRecorder):
            return callback
    raise TypeError("a Dashboard logs what a StageRecorder counts: put one before it")


def _distillation(pl_module: L.LightningModule) -> Distillation:
    assert isinstance(pl_module, Distillation)  # the StageRecorder has refused others
    return pl_module

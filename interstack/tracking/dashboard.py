"""The Lightning callback that tells how a run goes: what it costs, and what growing does to it."""

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
from interstack.tracking.loggers import Outlets
from interstack.tracking.metrics import (
    AXES,
    POINT_METRICS,
    RunMeters,
    axes_of,
    gradient_norms,
    layer_metrics,
    loss_metrics,
    point_figures,
)
from interstack.tracking.position import stage_number
from interstack.tracking.stage_records import block_names
from interstack.tracking.stages import StageRecorder, growth_summary, stage_summary
from interstack.tracking.step_timer import StepClock
from interstack.tracking.tolerant_loggers import tolerate_failures


class Dashboard(L.Callback):
    """Logs points, growths and layer similarities, to every logger and to ``events.jsonl``.

    A point is logged at the Trainer's ``log_every_n_steps``, and only then is anything read from
    the device, or a step's time taken apart. Training is the same bit by bit with this callback and
    without. It has to come after the ``StageRecorder``, whose counts and losses it tells.
    """

    def __init__(self) -> None:
        self._meters = RunMeters()
        self._module: Distillation | None = None  # while it trains, as the three below
        self._recorder: StageRecorder | None = None
        self._clock: StepClock | None = None
        self._gradient_norm: Tensor | None = None
        self._layer_norms: Tensor | None = None
        self._looks = False
        self._outlets: Outlets | None = None

    # From the beginning to the end --------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let no logger end the run where a disk is full or a service out of reach."""
        del pl_module
        if stage == "fit" and trainer.is_global_zero:
            for logger in trainer.loggers:
                tolerate_failures(logger)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell loggers what there will be, and begin to take the time."""
        self._leave()
        module = _distillation(pl_module)
        self._outlets = Outlets(trainer)
        losses = loss_metrics(module.student.teacher_taps)
        layers = layer_metrics(module.lineage)
        self._outlets.define((*AXES, *losses, *POINT_METRICS, *GROWTH_METRICS, *layers))
        self._outlets.catch_up()
        for report in module.precision_reports:
            self._outlets.tell("precision", **report.to_primitives())
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
        self._rest()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look at this step, if a point is due after it."""
        del pl_module, batch, batch_idx
        self._looks = step_is_logged(trainer)
        assert self._clock is not None
        self._clock.begin(self._looks)

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
        if self._looks:
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
        """Log a point if it is time to."""
        del outputs, batch, batch_idx
        module = _distillation(pl_module)
        assert self._clock is not None
        parts = self._clock.end()
        if trainer.fit_loop._should_accumulate():
            return
        self._meters.add_step(module.latest_loss)
        if self._looks:
            self._point(trainer, module, parts)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the axes beside the validation losses: W&B draws only what shares a row with them."""
        if self._outlets is not None and not trainer.sanity_checking:
            self._read()
            axes = _on_device(self._axes(), pl_module.device)
            pl_module.log_dict(axes, rank_zero_only=True)  # its clock, as everywhere

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave validation out of the time, and keep its loss."""
        losses = _logged(trainer, "val/")
        if self._outlets is not None and losses and not trainer.sanity_checking:
            depth = _distillation(pl_module).depth
            self._outlets.tell("validation", **self._axes(), depth=depth, losses=losses)
        self._rest()

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a stage: how alike its layers have become, and what it took."""
        self._end_stage(trainer, _distillation(pl_module))
        self._rest()

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Tell of the growth: layers, and the validation loss before and after."""
        module, outlets = _distillation(pl_module), self._open()
        growth = growth_of(trainer)
        operator = None if growth is None else growth.operator_name
        self._meters.spike.grown()
        content = growth_summary(
            plan, operator, module.lineage, module.student.tap_layers, _recorder(trainer).stages
        )
        outlets.define(layer_metrics(module.lineage))
        outlets.tell("growth", **self._axes(), **content)
        self._rest()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the last stage."""
        self._end_stage(trainer, _distillation(pl_module))
        self._leave()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Let go of the models."""
        del trainer, pl_module, exception
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on counting from; waits for the device."""
        self._read()
        return self._meters.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._meters = RunMeters.of_state(state_dict)

    # What is told -------------------------------------------------------------------------------

    def _point(self, trainer: L.Trainer, module: Distillation, parts: Mapping[str, float]) -> None:
        self._read()
        self._tell_recovery()
        since, steps = self._meters.take_since()
        stage = stage_number(trainer, module.depth).number
        figures = point_figures(since, steps, parts, stage, self._gradient_norm, module.device)
        if self._layer_norms is not None:
            norms = self._layer_norms.tolist()
            figures |= dict(zip(layer_metrics(module.lineage), norms, strict=True))
        axes = self._axes()
        module.log_dict(_on_device({**axes, **figures}, module.device))
        self._open().tell("point", **axes, **{**_logged(trainer, "train/"), **figures})

    def _tell_recovery(self) -> None:
        """Tell that the training loss is back where it was before the last growth."""
        spike = self._meters.spike
        if not spike.has_news:
            return
        spike.has_news = False
        before, peak, after = spike.before, spike.peak, spike.recovered_after
        self._open().tell("recovery", **self._axes(), before=before, peak=peak, after_steps=after)

    def _end_stage(self, trainer: L.Trainer, module: Distillation) -> None:
        self._read()
        self._tell_recovery()
        outlets = self._open()
        summary = stage_summary(_recorder(trainer).stages[-1], self._meters.spike)
        outlets.tell("stage", **self._axes(), **summary)
        similarity = measure_similarity(trainer, module) if trainer.is_global_zero else None
        if similarity is not None:
            names = block_names(module.lineage)
            maps = similarity.to_primitives()
            outlets.tell("similarity", depth=module.depth, layers=names, **maps)

    def _read(self) -> None:
        """Bring all counts up to date; waits for the device."""
        if self._module is not None and self._recorder is not None:
            self._meters.read(self._recorder, self._module)

    def _axes(self) -> dict[str, float]:
        return axes_of(self._meters.totals)

    def _open(self) -> Outlets:
        assert self._outlets is not None  # since training began
        return self._outlets

    def _rest(self) -> None:
        """Leave what comes between two steps out of their time: validations, what is told."""
        if self._recorder is not None:
            self._recorder.rest()
        if self._clock is not None:
            self._clock.rest()

    def _leave(self) -> None:
        self._module = self._recorder = self._outlets = None
        if self._clock is not None:
            self._clock.leave()
            self._clock = None


def _on_device(figures: Mapping[str, float], device: torch.device) -> dict[str, Tensor]:
    """Fill figures in on a device, which a copy would wait for."""
    return {name: torch.full((), value, device=device) for name, value in figures.items()}


def _logged(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Return what the module has logged under names that begin alike; waits for the device."""
    logged = trainer.callback_metrics.items()
    return {name: float(value) for name, value in logged if name.startswith(prefix)}


def _recorder(trainer: L.Trainer) -> StageRecorder:
    """Return the callback that counts what the points tell.

    Raises:
        TypeError: If there is none.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, StageRecorder):
            return callback
    raise TypeError("a Dashboard tells what a StageRecorder counts: put one before it")


def _distillation(pl_module: L.LightningModule) -> Distillation:
    assert isinstance(pl_module, Distillation)  # the StageRecorder has refused others
    return pl_module

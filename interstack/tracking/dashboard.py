"""The Lightning callback that tells how a run goes: what it costs, and what growing does to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.growth.callback import callbacks_of
from interstack.growth.plan import GrowthPlan
from interstack.models.teacher import Teacher
from interstack.tracking.boards import Board, open_boards
from interstack.tracking.compute import training_flops
from interstack.tracking.events import EventKind, append_event
from interstack.tracking.layer_similarity import measure_similarity
from interstack.tracking.points import (
    AXES,
    POINT_METRICS,
    axes_of,
    point_figures,
    point_is_due,
)
from interstack.tracking.position import growth_of, stage_number
from interstack.tracking.spike import SpikeMeter
from interstack.tracking.stages import StageRecorder
from interstack.tracking.step_clock import StepClock
from interstack.tracking.summaries import growth_summary, stage_summary
from interstack.tracking.totals import Totals, TotalsMeter


class Dashboard(L.Callback):
    """Logs points, growths and layer similarities, to every logger and to ``events.jsonl``.

    A point is logged at the Trainer's ``log_every_n_steps``, and only then is anything read from
    the device, or a step's time taken apart. Training is the same bit by bit with this callback and
    without. It has to come after the ``StageRecorder``, whose validation losses it tells.
    """

    def __init__(self) -> None:
        self._meter = TotalsMeter()
        self._module: Distillation | None = None  # while it trains
        self._clock: StepClock | None = None
        self._spike = SpikeMeter()
        self._losses: list[Tensor] = []
        self._gradient_norm: Tensor | None = None
        self._looks = self._recovered = False
        self._boards: list[Board] = []
        self._steps_since = 0

    # From the beginning to the end --------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell loggers what the points are read against."""
        del pl_module
        if stage == "fit":
            self._boards = open_boards(trainer)
            for board in self._boards:
                board.define((*AXES, *POINT_METRICS))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to take the time."""
        self._leave()
        module = _distillation(pl_module)
        self._clock = StepClock(module.device)
        teacher = module.teacher
        self._clock.watch(teacher if isinstance(teacher, Teacher) else None, module.student)
        self._module = module
        if trainer.global_step == 0:
            self._meter, self._spike = TotalsMeter(), SpikeMeter()
            self._steps_since = 0
        self._rest()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look at this step, if a point is due after it."""
        del pl_module, batch, batch_idx
        self._looks = point_is_due(trainer)
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
        """Take the gradients' norm, before they are clipped."""
        del trainer, optimizer
        if self._looks:
            found = [each.grad for each in pl_module.parameters() if each.grad is not None]
            self._gradient_norm = torch.nn.utils.get_total_norm(found) if found else None

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count, and log a point if it is time to."""
        del outputs, batch_idx
        module = _distillation(pl_module)
        assert self._clock is not None
        parts = self._clock.end()
        self._meter.add(batch, trainer.world_size)
        if trainer.fit_loop._should_accumulate():
            return
        self._steps_since += 1
        if module.latest_loss is not None:
            self._losses.append(module.latest_loss)
        if self._looks:
            self._point(trainer, module, parts)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the time up to here."""
        del trainer, pl_module
        self._meter.count_time()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave validation out of the time, and keep its loss."""
        module = _distillation(pl_module)
        losses = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        if losses and not trainer.sanity_checking:
            self._read()
            self._tell(trainer, "validation", **self._axes(), depth=module.depth, losses=losses)
        self._rest()

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a stage: how alike its layers have become, and what it took."""
        module = _distillation(pl_module)
        self._read()
        self._end_stage(trainer, module)
        self._rest()

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Tell of the growth: layers, and the validation loss before and after."""
        module = _distillation(pl_module)
        growth = growth_of(trainer)
        operator = None if growth is None else growth.operator_name
        self._spike.grown()
        content = growth_summary(
            plan, operator, module.lineage, module.student.tap_layers, _stages(trainer)
        )
        self._tell(trainer, "growth", **self._axes(), **content)
        for board in self._boards:
            board.growth(trainer.global_step, content)
        self._rest()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the last stage."""
        module = _distillation(pl_module)
        self._read()
        self._end_stage(trainer, module)
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
        return {
            "totals": self._meter.totals.state_dict(),
            "since": self._meter.since.state_dict(),
            "steps_since": self._steps_since,
            "spike": self._spike.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        sums = (Totals.of_state(state_dict[name]) for name in ("totals", "since"))
        self._meter = TotalsMeter(*sums)
        self._steps_since = state_dict["steps_since"]
        self._spike = SpikeMeter.of_state(state_dict["spike"])

    # What is told -------------------------------------------------------------------------------

    def _point(self, trainer: L.Trainer, module: Distillation, parts: Mapping[str, float]) -> None:
        self._read()
        self._tell_recovery(trainer)
        steps, self._steps_since = self._steps_since, 0
        stage = stage_number(trainer, module.depth).number
        since, norm = self._meter.take_since(), self._gradient_norm
        figures = point_figures(since, steps, parts, stage, norm, module.device)
        axes = self._axes()
        module.log_dict(
            {
                name: torch.full((), value, device=module.device)
                for name, value in {**axes, **figures}.items()
            }
        )
        logged = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/")
        }
        self._tell(trainer, "point", **axes, **{**logged, **figures})

    def _end_stage(self, trainer: L.Trainer, module: Distillation) -> None:
        stages = _stages(trainer)
        if not stages:
            return
        summary = stage_summary(stages[-1], self._spike)
        self._tell(trainer, "stage", **self._axes(), **summary)
        for board in self._boards:
            board.stage(trainer.global_step, summary)
        similarity = measure_similarity(trainer, module) if trainer.is_global_zero else None
        if similarity is None:
            return
        self._tell(trainer, "similarity", depth=module.depth, **similarity.to_primitives())
        for board in self._boards:
            board.similarity(trainer.global_step, module.lineage, similarity)

    def _read(self) -> None:
        """Bring all counts up to date; waits for the device."""
        if self._module is None:
            return
        student, teacher = self._module.student, self._module.teacher
        live = teacher if isinstance(teacher, Teacher) else None
        self._meter.count_time()
        self._meter.read(training_flops(student, live))
        losses, self._losses = self._losses, []
        for loss in torch.stack(losses).tolist() if losses else ():
            self._recovered = self._spike.add(loss) or self._recovered

    def _tell_recovery(self, trainer: L.Trainer) -> None:
        """Tell that the training loss is back where it was before the last growth."""
        if self._recovered:
            self._recovered = False
            spike = self._spike
            figures = {
                "before": spike.before,
                "peak": spike.peak,
                "after_steps": spike.recovered_after,
            }
            self._tell(trainer, "recovery", **figures)
            for board in self._boards:
                board.recovery(trainer.global_step, figures)

    def _axes(self) -> dict[str, float]:
        return axes_of(self._meter.totals)

    def _tell(self, trainer: L.Trainer, kind: EventKind, **content: Any) -> None:  # noqa: ANN401
        if trainer.is_global_zero:
            directory = Path(trainer.default_root_dir)
            append_event(directory, kind, trainer.global_step, **content)

    def _rest(self) -> None:
        self._meter.rest()
        if self._clock is not None:
            self._clock.rest()

    def _leave(self) -> None:
        self._module = None
        if self._clock is not None:
            self._clock.leave()
            self._clock = None


def _stages(trainer: L.Trainer) -> list[Any]:
    for callback in callbacks_of(trainer):
        if isinstance(callback, StageRecorder):
            return list(callback.stages)
    return []


def _distillation(pl_module: L.LightningModule) -> Distillation:
    assert isinstance(pl_module, Distillation)  # the StageRecorder has refused others
    return pl_module

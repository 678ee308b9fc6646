"""The Lightning callback that records a run's stages, and what is logged of each."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import lightning as L

from interstack.data.batch import Batch
from interstack.distillation.module import Distillation
from interstack.growth.callback import growth_of
from interstack.growth.plan import GrowthPlan
from interstack.tracking.lineage import layer_rows
from interstack.tracking.meters import AudioMeter, SpikeMeter, Stopwatch
from interstack.tracking.position import stage_number
from interstack.tracking.stage_records import (
    EarlyEnd,
    RunStatus,
    StageRecord,
    print_stage_table,
    write_stages,
)
from interstack.tracking.validation import validation_loss

log = logging.getLogger(__name__)

STAGE_COLUMNS: Final = (
    "stage",
    "depth",
    "num_parameters",
    "steps",
    "audio_seconds",
    "training_seconds",
    "validation_before",
    "validation_after",
    "loss_before_growth",
    "loss_peak",
    "recovered_after_steps",
)
"""Keys of `stage_summary`, in the order of its table."""


def stage_summary(stage: StageRecord, spike: SpikeMeter) -> dict[str, Any]:
    """Return what is logged of a stage.

    Args:
        stage: The stage, at its end.
        spike: Of the growth step that it began with.
    """
    values = (
        stage.stage,
        stage.depth,
        stage.num_parameters,
        stage.steps,
        stage.audio_seconds,
        stage.training_seconds,
        stage.validation_loss_before,
        stage.validation_loss_after,
        spike.before,
        spike.peak,
        spike.recovered_after,
    )
    return dict(zip(STAGE_COLUMNS, values, strict=True))


def growth_summary(
    plan: GrowthPlan,
    operator: str | None,
    lineage: Sequence[int],
    tap_layers: Sequence[int],
    stages: Sequence[StageRecord],
) -> dict[str, Any]:
    """Return what is logged of a growth step: its layers, and the validation loss on both sides.

    Args:
        plan: The growth step.
        operator: Its operator's name.
        lineage: Of the grown stack.
        tap_layers: Of the grown stack.
        stages: The run's; the last one begins now.
    """
    return {
        "from_depth": plan.old_depth,
        "to_depth": plan.depth,
        "operator": operator,
        "layers": layer_rows(lineage, plan, tap_layers),
        "validation_before": stages[-2].validation_loss_after if len(stages) > 1 else None,
        "validation_after": stages[-1].validation_loss_before if stages else None,
    }


class StageRecorder(L.Callback):
    """Writes ``stages.json`` into the run's directory, and prints it as a table at the end.

    A stage lasts from the run's start, or a growth step, to the next one, or the run's end; the
    validation loss is measured at both. The record goes into checkpoints, so that a resumed run
    continues it, and training is the same bit by bit with this callback and without.

    Attributes:
        stages: The stages so far; the last one is in progress unless it is ``finished``.
        early_end: Where training ended before its schedule did; None otherwise.
    """

    def __init__(self) -> None:
        self.stages: list[StageRecord] = []
        self.early_end: EarlyEnd | None = None
        self._audio = AudioMeter()
        self._stopwatch = Stopwatch()
        self._is_training = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a module whose loss can't be measured, before any training."""
        del trainer, stage
        _distillation(pl_module)

    # From stage to stage ------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the first stage, or continue the one in which a resumed run was interrupted."""
        self._is_training = True
        self._audio = AudioMeter()  # without the step in which an earlier fit may have ended
        self.early_end = None
        if trainer.global_step == 0:
            self.stages = []
        if self.stages and self.stages[-1].depth == _distillation(pl_module).depth:
            self.stages[-1].finished = False
            self.stages[-1].validation_loss_after = None
        else:
            self._begin(trainer, pl_module)
        self.skip_time()

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a stage."""
        self._end(trainer, pl_module)
        self._write(trainer, "running")
        self.skip_time()

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Begin the next stage, whose time includes growing."""
        del plan
        growing_seconds = self._stopwatch.lap()
        self._begin(trainer, pl_module, growing_seconds)
        self.skip_time()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the last stage, or the one in which the run ends early."""
        self._end(trainer, pl_module)
        self.early_end = _early_end(trainer, _distillation(pl_module).depth)
        self.stages[-1].finished = self.early_end is None
        self._write(trainer, "finished" if self.early_end is None else "ended_early")
        self._is_training = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table, now that no progress bar is in the way."""
        del pl_module
        if not self.stages:
            return
        if self.stages[-1].finished:  # a resumed run may have lost its record
            self._write(trainer, "finished")
        if not trainer.is_global_zero:
            return
        is_trial = bool(getattr(trainer, "fast_dev_run", False))
        with contextlib.suppress(OSError):  # the log file's disk is full
            print_stage_table(self.stages, None if is_trial else Path(trainer.default_root_dir))
        if self.early_end is not None:
            log.warning("the run ended early, %s", self.early_end)

    def on_exception(self, trainer: L.Trainer, *_: object, **__: object) -> None:
        """Write what is done, also of the stage in progress."""
        if not self._is_training:
            return  # the record of an earlier process may know more than the checkpoint
        self._is_training = False
        try:
            self.read()
            self._write(trainer, "interrupted")
        except RuntimeError:  # a dead device must not hide the cause
            log.warning("the record of the interrupted stage is lost", exc_info=True)

    def _begin(
        self, trainer: L.Trainer, pl_module: L.LightningModule, training_seconds: float = 0.0
    ) -> None:
        module = _distillation(pl_module)
        stage = StageRecord(
            stage=stage_number(trainer, module.depth).number,
            depth=module.depth,
            num_parameters=module.student.num_parameters(),
            first_step=trainer.global_step,
            training_seconds=training_seconds,
        )
        self.stages.append(stage)
        stage.validation_loss_before = validation_loss(trainer, module)
        self._write(trainer, "running")

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stage = self.stages[-1]
        self.read()  # waits for the device, so that the last lap holds all of its work
        stage.training_seconds += self._stopwatch.lap()
        stage.validation_loss_after = validation_loss(trainer, _distillation(pl_module))
        stage.finished = True

    # Within a stage -----------------------------------------------------------------------------

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count steps, audio and time, without waiting for the device."""
        del pl_module, outputs, batch_idx
        stage = self.stages[-1]
        stage.steps = trainer.global_step - stage.first_step
        stage.training_seconds += self._stopwatch.lap()
        ends_step = not trainer.fit_loop._should_accumulate()
        self._audio.add(batch, trainer.world_size, ends_step=ends_step)

    def on_validation_end(self, *_: object, **__: object) -> None:
        """Leave validation out of the stage's time."""
        self.skip_time()

    # Records ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the record as primitives."""
        self.read()
        early = None if self.early_end is None else str(self.early_end)
        return {"stages": [asdict(stage) for stage in self.stages], "early_end": early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the record of a resumed run."""
        self.stages = [StageRecord(**stage) for stage in state_dict["stages"]]

    def read(self) -> None:
        """Bring the counts of audio up to date; waits for the device."""
        if self.stages:
            audio = self._audio.take()
            self.stages[-1].audio_seconds += audio.seconds
            self.stages[-1].padded_seconds += audio.padded_seconds

    def skip_time(self) -> None:
        """Leave the time since the last batch out of the stage's."""
        self._stopwatch.lap()

    def _write(self, trainer: L.Trainer, status: RunStatus) -> None:
        if trainer.is_global_zero:
            directory = Path(trainer.default_root_dir)
            write_stages(directory, self.stages, status, self.early_end)


def _early_end(trainer: L.Trainer, depth: int) -> EarlyEnd | None:
    """Return where training ended before its schedule did, by ``max_time`` or a callback."""
    if trainer.max_steps > 0:
        done, total, unit = trainer.global_step, trainer.max_steps, "step"
    elif trainer.max_epochs is not None and trainer.max_epochs > 0:
        done, total, unit = trainer.current_epoch, trainer.max_epochs, "epoch"
    else:
        return None
    if done >= total:
        return None
    growth = growth_of(trainer)
    number, stages = stage_number(trainer, depth)
    final_depth = depth if growth is None else growth.depths[-1]
    return EarlyEnd(number, stages, depth, final_depth, done, total, unit)


def _distillation(pl_module: L.LightningModule) -> Distillation:
    """Return the module as what it has to be.

    Raises:
        TypeError: If it is another one.
    """
    if not isinstance(pl_module, Distillation):
        raise TypeError(f"{type(pl_module).__name__} is no Distillation")
    return pl_module

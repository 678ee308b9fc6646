"""What is told of a stage's end and of a growth, as primitives."""

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
from interstack.growth.plan import GrowthPlan
from interstack.tracking.meters import AudioMeter, SpikeMeter, Stopwatch
from interstack.tracking.position import early_end, stage_number
from interstack.tracking.stage_records import (
    EarlyEnd,
    RunStatus,
    StageRecord,
    layer_rows,
    print_stage_table,
    write_stages,
)
from interstack.tracking.validation import validation_loss

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
"""What a stage's summary holds, in the order of its table."""


def stage_summary(stage: StageRecord, spike: SpikeMeter) -> dict[str, Any]:
    """Return what a stage took and brought.

    Args:
        stage: The stage, at its end.
        spike: Of the growth that began it.
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
    """Return what a growth made, and the validation loss on both of its sides.

    Args:
        plan: The growth.
        operator: Its operator's name.
        lineage: Of the grown stack.
        tap_layers: Of the grown stack.
        stages: The run's, the one that begins now the last.
    """
    return {
        "from_depth": plan.old_depth,
        "to_depth": plan.depth,
        "operator": operator,
        "layers": layer_rows(lineage, plan, tap_layers),
        "validation_before": stages[-2].validation_loss_after if len(stages) > 1 else None,
        "validation_after": stages[-1].validation_loss_before if stages else None,
    }


log = logging.getLogger(__name__)


class StageRecorder(L.Callback):
    """Keeps ``stages.json`` in the run's directory, and closes the run with it as a table.

    A stage lasts from the run's start, or a growth, to the next growth, or the run's end; the
    validation loss is measured at both. The record goes into checkpoints, so a resumed run
    goes on with it, and training is the same bit by bit with this callback and without.

    Attributes:
        stages: The stages so far; the last one is going on unless it is ``finished``.
        early_end: Where training has ended before its schedule did; None otherwise.
    """

    def __init__(self) -> None:
        self.stages: list[StageRecord] = []
        self.early_end: EarlyEnd | None = None
        self._audio = AudioMeter()
        self._stopwatch = Stopwatch()
        self._training = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a module whose loss can't be measured, before any training."""
        del trainer, stage
        _distillation(pl_module)

    # From stage to stage ------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the first stage, or go on with the one that a resumed run was cut in."""
        self._training = True
        self._audio = AudioMeter()  # without the step that an earlier fit may have broken off in
        self.early_end = None
        if trainer.global_step == 0:
            self.stages = []
        if self.stages and self.stages[-1].depth == _distillation(pl_module).depth:
            self.stages[-1].finished = False
            self.stages[-1].validation_loss_after = None
        else:
            self._begin(trainer, pl_module)
        self.rest()

    def on_growth_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a stage."""
        self._end(trainer, pl_module)
        self._write(trainer, "running")
        self.rest()

    def on_growth_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, plan: GrowthPlan
    ) -> None:
        """Begin the next stage; the time that growth took is its first."""
        del plan
        growing_seconds = self._stopwatch.lap()
        self._begin(trainer, pl_module, growing_seconds)
        self.rest()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the last stage, or the one that the run has got to."""
        self._end(trainer, pl_module)
        self.early_end = early_end(trainer, _distillation(pl_module).depth)
        self.stages[-1].finished = self.early_end is None
        self._write(trainer, "finished" if self.early_end is None else "ended_early")
        self._training = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table, now that no progress bar is in the way."""
        del pl_module
        if not self.stages:
            return
        if self.stages[-1].finished:  # as in a run that had lost its record and is resumed
            self._write(trainer, "finished")
        if not trainer.is_global_zero:
            return
        is_trial = bool(getattr(trainer, "fast_dev_run", False))
        with contextlib.suppress(OSError):  # the log file's disk is full
            print_stage_table(self.stages, None if is_trial else Path(trainer.default_root_dir))
        if self.early_end is not None:
            log.warning("the run ended early, %s", self.early_end)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Keep what is done, also of the stage that was going on."""
        del pl_module, exception
        if not self._training:
            return  # the record of an earlier process may know more than the checkpoint
        self._training = False
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

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the time since the last batch go uncounted."""
        del trainer, pl_module
        self.rest()

    # Records ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the record as primitives."""
        self.read()
        early = None if self.early_end is None else str(self.early_end)
        return {"stages": [asdict(stage) for stage in self.stages], "early_end": early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the record of a run that is resumed."""
        self.stages = [StageRecord(**stage) for stage in state_dict["stages"]]

    def read(self) -> None:
        """Bring the counts of audio up to date; waits for the device."""
        if self.stages:
            audio = self._audio.take()
            self.stages[-1].audio_seconds += audio.seconds
            self.stages[-1].padded_seconds += audio.padded_seconds

    def rest(self) -> None:
        """Let the time since the last batch, or since growth began, go uncounted."""
        self._stopwatch.lap()

    def _write(self, trainer: L.Trainer, status: RunStatus) -> None:
        if trainer.is_global_zero:
            directory = Path(trainer.default_root_dir)
            write_stages(directory, self.stages, status, self.early_end)


def _distillation(pl_module: L.LightningModule) -> Distillation:
    """Return the module as what it has to be.

    Raises:
        TypeError: If it is another one.
    """
    if not isinstance(pl_module, Distillation):
        raise TypeError(f"{type(pl_module).__name__} is no Distillation")
    return pl_module

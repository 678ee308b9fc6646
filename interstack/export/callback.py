"""The Lightning callback that leaves the grown student in the run's directory."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.averaging import AVERAGING_KEY, averaging_record
from interstack.distillation.module import Distillation
from interstack.distillation.structure import CHECKPOINT_KEY, student_structure
from interstack.export.student_export import validation_clips, write_export
from interstack.tracking.stages import StageRecorder

log = logging.getLogger(__name__)

STUDENT_DIRECTORY: Final = "student"


class SaveStudent(L.Callback):
    """Writes the final student to ``<run>/student`` when a fit has come to its end."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export on rank zero; a run that broke off never comes here, its checkpoint has all."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Distillation)
        datamodule = getattr(trainer, "datamodule", None)
        clips = validation_clips(datamodule) if isinstance(datamodule, SpeechDataModule) else ()
        directory = Path(trainer.default_root_dir) / STUDENT_DIRECTORY
        write_export(pl_module.student, _content(trainer, pl_module), directory, clips=clips)
        log.info("the student is in %s", directory)


def _content(trainer: L.Trainer, module: Distillation) -> dict[str, Any]:
    """Return what a checkpoint of now would say of the student.

    No checkpoint is made for it: that takes all ranks.
    """
    content: dict[str, Any] = {
        CHECKPOINT_KEY: student_structure(module.student),
        "hyper_parameters": dict(module.hparams),
        "global_step": trainer.global_step,
        "callbacks": {},
    }
    averaging = averaging_record(trainer, module)
    if averaging is not None:
        content[AVERAGING_KEY] = averaging
    for callback in trainer.callbacks:  # type: ignore[attr-defined] # set, but not declared
        if isinstance(callback, StageRecorder):
            stages = {"stages": [asdict(stage) for stage in callback.stages]}
            content["callbacks"][StageRecorder.__qualname__] = stages
        if isinstance(callback, SaveConfigCallback):
            callback.on_save_checkpoint(trainer, module, content)
    return content

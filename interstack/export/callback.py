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
from interstack.export.huggingface import validation_clips, write_export, written_whole
from interstack.export.provenance import EARLY_END_KEY
from interstack.growth.callback import callbacks_of
from interstack.models.student import CHECKPOINT_KEY, student_structure
from interstack.tracking.stage_records import EarlyEnd
from interstack.tracking.stages import StageRecorder

log = logging.getLogger(__name__)

STUDENT_DIRECTORY: Final = "student"


class SaveStudent(L.Callback):
    """Writes the final student to ``<run>/student``, atomically, when a fit has come to its end."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export on rank zero; a run that broke off never comes here, its checkpoint has all."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Distillation)
        datamodule = getattr(trainer, "datamodule", None)
        clips = validation_clips(datamodule) if isinstance(datamodule, SpeechDataModule) else ()
        directory = Path(trainer.default_root_dir) / STUDENT_DIRECTORY
        fix = (
            "free space; the run is finished and its checkpoint written, so that the same command "
            "with --ckpt_path last, or python -m interstack.cli export --checkpoint "
            f"{trainer.default_root_dir} --output DIRECTORY, writes the student"
        )
        with written_whole(directory, replaces=True, fix=fix) as part:
            write_export(pl_module.student, _content(trainer, pl_module), part, clips=clips)
        if not getattr(trainer, "fast_dev_run", False):  # of which nothing is kept
            depth, early_end = pl_module.depth, _early_end(trainer)
            which = "" if early_end is None else f", not fully trained, at depth {depth}"
            log.info("the student%s is in %s", which, directory)


def _early_end(trainer: L.Trainer) -> EarlyEnd | None:
    """Return where the run ended, if that was before its schedule did."""
    recorders = (each for each in callbacks_of(trainer) if isinstance(each, StageRecorder))
    return next((recorder.early_end for recorder in recorders), None)


def _content(trainer: L.Trainer, module: Distillation) -> dict[str, Any]:
    """Return what a checkpoint of now would say of the student.

    No checkpoint is made for it: that takes all ranks.
    """
    content: dict[str, Any] = {
        CHECKPOINT_KEY: student_structure(module.student),
        "hyper_parameters": dict(module.hparams),
        "global_step": trainer.global_step,
        "callbacks": {},
        EARLY_END_KEY: None if (early_end := _early_end(trainer)) is None else str(early_end),
    }
    averaging = averaging_record(trainer, module)
    if averaging is not None:
        content[AVERAGING_KEY] = averaging
    for callback in callbacks_of(trainer):
        if isinstance(callback, StageRecorder):
            stages = {"stages": [asdict(stage) for stage in callback.stages]}
            content["callbacks"][StageRecorder.__qualname__] = stages
        if isinstance(callback, SaveConfigCallback):
            callback.on_save_checkpoint(trainer, module, content)
    return content

"""The student as an ordinary Hugging Face ``HubertModel`` directory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from transformers import Wav2Vec2FeatureExtractor
from transformers.utils import logging as transformers_logging

from interstack.constants import SAMPLE_RATE
from interstack.models.student import Student

log = logging.getLogger(__name__)


def export_student(student: Student, directory: Path) -> None:
    """Write a student so that ``AutoModel.from_pretrained(directory)`` gives its hidden states.

    The distillation heads stay behind: they belong to the training.

    Args:
        student: The student, at any depth.
        directory: Where ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` go.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _without_progress_bar():
        student.model.save_pretrained(directory)
    Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=student.normalises_waveform,
        # as published models do: those with a group norm were pretrained without a mask
        return_attention_mask=student.config.feat_extract_norm == "layer",
    ).save_pretrained(directory)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Save quietly: a bar for one file of a small model is noise."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class SaveStudent(L.Callback):
    """Writes the final student to ``<run>/student`` when a fit has come to its end."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export on rank zero; a run that broke off never comes here, its checkpoint has all."""
        if trainer.is_global_zero:
            student = pl_module.student
            assert isinstance(student, Student)
            directory = Path(trainer.default_root_dir) / "student"
            export_student(student, directory)
            log.info("the student is in %s", directory)

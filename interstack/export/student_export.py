"""An export, whole: the model, its card, where it comes from, and ONNX if it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.datamodule import SpeechDataModule
from interstack.data.decoding import Decoder, decode_each
from interstack.data.left_out import LeftOutHere, report_skipped
from interstack.data.tolerance import Tolerance
from interstack.errors import InterstackError
from interstack.export.directory import export_student
from interstack.export.model_card import write_card
from interstack.export.onnx import check_onnx, export_onnx
from interstack.export.padding import padding_gap
from interstack.export.provenance import Provenance
from interstack.models.student import Student

log = logging.getLogger(__name__)

_NUM_CLIPS: Final = 4
_CLIP_SECONDS: Final = 10


def write_export(
    student: Student,
    content: Mapping[str, Any],
    directory: Path,
    *,
    clips: Sequence[Tensor] = (),
    with_onnx: bool = False,
    precision_check: bool = True,
) -> None:
    """Write a student with everything that belongs to it.

    Args:
        student: The student.
        content: Of its checkpoint; see `Provenance.of_checkpoint`.
        directory: Where it goes.
        clips: Speech on which the card says what padding does; two lengths at least, or none.
        with_onnx: Also write ``model.onnx``.
        precision_check: Compare that with the student before it is kept.

    Raises:
        ConfigurationError: If ONNX is asked for and its packages are not installed.
        PrecisionError: If the ONNX graph computes something else than the student.
        OSError: If it can't be written.
    """
    export_student(student, directory)
    provenance = Provenance.of_checkpoint(content)
    provenance.write(directory)
    gap = padding_gap(directory, clips) if len({len(clip) for clip in clips}) > 1 else None
    write_card(directory, provenance, student.config, student.num_parameters(), gap)
    if with_onnx:
        path = export_onnx(student, directory)
        if precision_check:
            check_onnx(student, path, clips)


def validation_clips(datamodule: SpeechDataModule) -> list[Tensor]:
    """Return some clips of a run's validation split, to measure on; none if they can't be had.

    Args:
        datamodule: Set up for fitting or validating.
    """
    decode = Decoder(max_samples=_CLIP_SECONDS * SAMPLE_RATE)
    tolerance = Tolerance(datamodule.on_corrupt, LeftOutHere())
    try:
        utterances, _ = datamodule.utterances_once("validation")
        decoded = decode_each(utterances, decode, tolerance)
        clips = [waveform for _, waveform in islice(decoded, _NUM_CLIPS)]
        skipped = tolerance.left_out.take()
        report_skipped(skipped.skipped, skipped.example, "utterances of validation")
        return clips
    except InterstackError as error:
        log.warning("padding is not measured for the export's card: %s", error)
        return []

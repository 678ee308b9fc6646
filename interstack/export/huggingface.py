"""The student as an ordinary Hugging Face ``HubertModel`` directory, from a run or a checkpoint."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.cli import SaveConfigCallback
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import logging as transformers_logging

from interstack.checkpointing.inspect import newest_run, read_checkpoint
from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder, decode_each
from interstack.data.datamodule import SpeechDataModule
from interstack.data.skips import SkipCounter, Tolerance, report_skipped
from interstack.distillation.averaging import AVERAGING_KEY, averaging_record
from interstack.distillation.module import Distillation
from interstack.errors import CheckpointError, ConfigurationError, InterstackError
from interstack.export.card import write_card
from interstack.export.onnx import check_onnx, export_onnx
from interstack.export.provenance import EARLY_END_KEY, Provenance
from interstack.growth.callback import callbacks_of
from interstack.models.preprocessing import wav2vec2_feature_extractor
from interstack.models.student import CHECKPOINT_KEY, Student, rebuild_student, student_structure
from interstack.tracking.stage_records import EarlyEnd
from interstack.tracking.stages import StageRecorder
from interstack.utils.atomic import PART
from interstack.utils.disk import is_there, write_errors

log = logging.getLogger(__name__)

STUDENT_DIRECTORY: Final = "student"
_WEIGHT_PREFIX: Final = "student."
_NUM_CLIPS: Final = 4
_CLIP_SECONDS: Final = 10


class SaveStudent(L.Callback):
    """Writes the final student to ``<run>/student``, atomically, when a fit is complete."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export on rank zero; a run that is interrupted never gets here."""
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
        early_end = _early_end(trainer)
        content = _checkpoint_content(trainer, pl_module, early_end)
        with atomic_directory(directory, replaces=True, fix=fix) as part:
            write_export(pl_module.student, content, part, clips=clips)
        if not getattr(trainer, "fast_dev_run", False):  # which keeps nothing
            which = "" if early_end is None else f", not fully trained, at depth {pl_module.depth}"
            log.info("the student%s is in %s", which, directory)


def write_export(
    student: Student,
    content: Mapping[str, Any],
    directory: Path,
    *,
    clips: Sequence[Tensor] = (),
    with_onnx: bool = False,
    precision_check: bool = True,
) -> None:
    """Write a student with its feature extractor, provenance and model card.

    Args:
        student: The student, at any depth.
        content: Content of its checkpoint; see `Provenance.of_checkpoint`.
        directory: The export.
        clips: Speech to measure `padding_gap` on for the card; two lengths at least, or none.
        with_onnx: Also write ``model.onnx``.
        precision_check: Compare the ONNX graph with the student.

    Raises:
        ConfigurationError: If ONNX is required and its packages are not installed.
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


def export_student(student: Student, directory: Path) -> None:
    """Write a student so that ``AutoModel.from_pretrained(directory)`` gives its hidden states.

    The distillation heads are not exported: only training uses them.

    Args:
        student: The student, at any depth.
        directory: Where ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` go.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _without_progress_bar():
        student.model.save_pretrained(directory)
    wav2vec2_feature_extractor(
        normalises=student.normalises_waveform, masks=student.config.feat_extract_norm == "layer"
    ).save_pretrained(directory)


def load_student(path: Path) -> tuple[Student, dict[str, Any]]:
    """Rebuild the student of a checkpoint at its depth, with its weights.

    Args:
        path: A checkpoint, or a run's directory, whose newest checkpoint is read.

    Returns:
        The student, in eval mode on the CPU, and the content of the checkpoint, whose tensors stay
        on the disk until they are used.

    Raises:
        CheckpointError: If it is missing, damaged, or not interstack's.
    """
    if path.is_dir():
        path = _newest_checkpoint(path)
    read_checkpoint(path)  # raises a plain error of what is no checkpoint
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    with torch.random.fork_rng(devices=[]):
        student = rebuild_student(content[CHECKPOINT_KEY])
    weights = {
        name.removeprefix(_WEIGHT_PREFIX): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(_WEIGHT_PREFIX)
    }
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path} are not those of the student that it describes: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return student.eval(), content


@contextmanager
def atomic_directory(
    directory: Path,
    *,
    replaces: bool = False,
    fix: str = "free space, or give --output another place",
) -> Iterator[Path]:
    """Yield a directory to write into, which gets its name when it is complete.

    Args:
        directory: Its final path: not there yet, or empty.
        replaces: Replace a directory that is there.
        fix: The fix that an error names where it can't be written.

    Raises:
        ConfigurationError: If there is something at its path.
        InterstackError: If it can't be written; an earlier directory is kept then.
    """
    unfinished, earlier = (directory.with_name(f".{directory.name}{end}") for end in (PART, ".old"))
    try:
        with write_errors(directory, fix):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
            taken = directory.is_symlink() or is_there(directory)
            if taken and not replaces:
                raise ConfigurationError(
                    f"{directory} is already there: give --output another directory, or remove it"
                )
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            yield unfinished
            if taken:
                shutil.rmtree(earlier, ignore_errors=True)
                directory.rename(earlier)
            try:
                unfinished.rename(directory)
            except OSError:
                if taken:
                    earlier.rename(directory)
                raise
            shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def validation_clips(datamodule: SpeechDataModule) -> list[Tensor]:
    """Return some clips of a run's validation split; none, with a warning, if it can't be read.

    Args:
        datamodule: Set up for fitting or validating.
    """
    decode = Decoder(max_samples=_CLIP_SECONDS * SAMPLE_RATE)
    tolerance = Tolerance(datamodule.on_corrupt, SkipCounter())
    try:
        utterances, _ = datamodule.utterances_once("validation")
        decoded = decode_each(utterances, decode, tolerance)
        clips = [waveform for _, waveform in islice(decoded, _NUM_CLIPS)]
        skipped = tolerance.skips.take()
        report_skipped(skipped.skipped, skipped.example, "utterances of validation")
        return clips
    except InterstackError as error:
        log.warning("padding is not measured for the export's card: %s", error)
        return []


def padding_gap(directory: Path, waveforms: Sequence[Tensor]) -> float:
    """Return the largest relative error that padding brings into an utterance's hidden states.

    transformers' own forward includes padding in the statistics of a group norm (HuBERT Base's);
    layer norms have none over time. The error of an utterance is the largest over hidden states of
    ‖padded − alone‖ / ‖alone‖, over its valid frames; padded to the longest, with an attention
    mask.

    Args:
        directory: An export.
        waveforms: Two or more utterances, (num_samples,), of different lengths.
    """
    with _without_progress_bar():
        model: Any = AutoModel.from_pretrained(directory, dtype=torch.float32)
    extractor: Any = AutoFeatureExtractor.from_pretrained(directory)
    model.eval()

    def forward(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        inputs = extractor(
            [clip.numpy() for clip in clips],
            sampling_rate=SAMPLE_RATE,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        lengths = inputs["attention_mask"].sum(-1)
        output = model(**inputs, output_hidden_states=True)
        return torch.stack(output.hidden_states), model._get_feat_extract_output_lengths(lengths)

    largest = 0.0
    with torch.inference_mode():
        padded, frames = forward(waveforms)
        for row, waveform in enumerate(waveforms):
            alone = forward([waveform])[0][:, 0]
            difference = padded[:, row, : frames[row]] - alone
            errors = difference.norm(dim=(1, 2)) / alone.norm(dim=(1, 2))
            largest = max(largest, float(errors.max()))
    return largest


def _checkpoint_content(
    trainer: L.Trainer, module: Distillation, early_end: EarlyEnd | None
) -> dict[str, Any]:
    """Return what a checkpoint would hold of the student's provenance, without all ranks' help."""
    content: dict[str, Any] = {
        CHECKPOINT_KEY: student_structure(module.student),
        "hyper_parameters": dict(module.hparams),
        "global_step": trainer.global_step,
        "callbacks": {},
        EARLY_END_KEY: None if early_end is None else str(early_end),
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


def _early_end(trainer: L.Trainer) -> EarlyEnd | None:
    """Return where the run ended, if that was before its schedule did."""
    recorders = (each for each in callbacks_of(trainer) if isinstance(each, StageRecorder))
    return next((recorder.early_end for recorder in recorders), None)


def _newest_checkpoint(run: Path) -> Path:
    for directory in (run / "checkpoints", run):
        found = newest_run(directory)
        if found is not None:
            return found.path
    raise CheckpointError(
        f"{run} has no checkpoint: give the directory of a run, or one of its .ckpt files"
    )


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Disable transformers' progress bar, which is noise for one file of a small model."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()

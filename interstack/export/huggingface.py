"""The student as an ordinary Hugging Face ``HubertModel`` directory, from any checkpoint."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import logging as transformers_logging

from interstack.checkpointing.inspect import newest_run, read_checkpoint
from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder, decode_each
from interstack.data.datamodule import SpeechDataModule
from interstack.data.skips import SkipCounter, Tolerance, report_skipped
from interstack.errors import CheckpointError, ConfigurationError, InterstackError
from interstack.export.card import write_card
from interstack.export.onnx import check_onnx, export_onnx
from interstack.export.provenance import Provenance
from interstack.models.preprocessing import wav2vec2_feature_extractor
from interstack.models.student import CHECKPOINT_KEY, Student, rebuild_student
from interstack.utils.atomic import PART
from interstack.utils.disk import is_there, write_errors


def padding_gap(directory: Path, waveforms: Sequence[Tensor]) -> float:
    """Return the largest relative error that padding brings into an utterance's hidden states.

    transformers' own forward lets padding into the statistics of a group norm (HuBERT Base's);
    layer norms have none over time. The error of an utterance is the largest over hidden states of
    ‖padded − alone‖ / ‖alone‖, over its valid frames; padded to the longest, with an attention
    mask.

    Args:
        directory: An export.
        waveforms: Two or more utterances, (num_samples,), of different lengths.
    """
    with without_progress_bar():
        model: Any = AutoModel.from_pretrained(directory, dtype=torch.float32)
    prepare: Any = AutoFeatureExtractor.from_pretrained(directory)
    model.eval()

    def hear(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        inputs = prepare(
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
        padded, frames = hear(waveforms)
        for row, waveform in enumerate(waveforms):
            alone = hear([waveform])[0][:, 0]
            difference = padded[:, row, : frames[row]] - alone
            errors = difference.norm(dim=(1, 2)) / alone.norm(dim=(1, 2))
            largest = max(largest, float(errors.max()))
    return largest


def export_student(student: Student, directory: Path) -> None:
    """Write a student so that ``AutoModel.from_pretrained(directory)`` gives its hidden states.

    The distillation heads stay behind: they belong to the training.

    Args:
        student: The student, at any depth.
        directory: Where ``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` go.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with without_progress_bar():
        student.model.save_pretrained(directory)
    wav2vec2_feature_extractor(
        normalises=student.normalises_waveform, masks=student.config.feat_extract_norm == "layer"
    ).save_pretrained(directory)


@contextmanager
def written_whole(
    directory: Path,
    *,
    replaces: bool = False,
    fix: str = "free space, or give --output another place",
) -> Iterator[Path]:
    """Give a directory to write into, and move it to its place when everything is in it.

    Args:
        directory: Its place: not there yet, or empty.
        replaces: Take the place of what is there.
        fix: What the user can do where it can't be written.

    Raises:
        ConfigurationError: If there is something in its place.
        InterstackError: If it can't be made or written; what was there before is still there then.
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


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Save or load quietly: a bar for one file of a small model is noise."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


_PREFIX: Final = "student."
"""Of the student's weights in a checkpoint."""


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path means: a file, or the newest one of a run's directory.

    Raises:
        CheckpointError: If there is none, or none that can be read.
    """
    if not path.is_dir():
        return path
    for directory in (path / "checkpoints", path):
        run = newest_run(directory)
        if run is not None:
            return run.path
    raise CheckpointError(
        f"{path} has no checkpoint: give the directory of a run, or one of its .ckpt files"
    )


def load_student(path: Path) -> tuple[Student, dict[str, Any]]:
    """Rebuild the student of a checkpoint at its depth, with its weights.

    Args:
        path: As `find_checkpoint` takes it.

    Returns:
        The student, in eval mode on the processor, and the whole content of the checkpoint, whose
        tensors stay on the disk until they are used.

    Raises:
        CheckpointError: If it is missing, damaged, or none of interstack's.
    """
    path = find_checkpoint(path)
    read_checkpoint(path)  # says what is wrong with it
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    with torch.random.fork_rng(devices=[]):
        student = rebuild_student(content[CHECKPOINT_KEY])
    weights = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path} are not those of the student that it describes: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return student.eval(), content


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

"""The callback that writes the student's hidden states in ``predict``."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.errors import DataError
from interstack.models.student import StudentOutput
from interstack.models.windows import WindowedOutput
from interstack.utils.disk import write_errors
from interstack.utils.tensor_files import safetensors_header, write_pieces

DIRECTORY: Final = "hidden_states"
SUFFIX: Final = ".safetensors"
_DTYPES: Final = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Names of dtypes in safetensors."""
_FIX: Final = "free space, then give the same command again"
_NAME_MAX: Final = 255
"""Bytes of a file name, where the file system does not report its limit."""


class SaveHiddenStates(BasePredictionWriter):
    """Writes ``<run>/hidden_states/<utterance id>.safetensors``, one file an utterance.

    Each holds one tensor, ``hidden_states``: (depth + 1, frames, width), padding cut off, and the
    id as metadata. An id with slashes makes folders; see `file_of`. Files are written atomically
    and replace those of an earlier prediction.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._written: dict[str, str] = {}
        self._ignores_case = False

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the names of all files, where the corpus is known as a whole.

        Raises:
            InterstackError: If the directory can't be made.
            DataError: If two utterances make one file, or a name is too long.
        """
        del pl_module
        directory = _directory(trainer)
        with write_errors(directory, "give another trainer.default_root_dir"):
            directory.mkdir(parents=True, exist_ok=True)
        self._ignores_case = directory.with_name(DIRECTORY.upper()).exists()
        self._written = {}
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, SpeechDataModule):
            utterances, _ = datamodule.utterances_once("predict")
            if isinstance(utterances, Sequence):
                for utterance in utterances:
                    self._file(directory, utterance.id)
        self._written = {}

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: StudentOutput | WindowedOutput,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch's utterances.

        Raises:
            DataError: If a file would replace another utterance's, or its name is too long.
            InterstackError: If a file can't be written.
        """
        del pl_module, batch_indices, batch_idx, dataloader_idx
        directory = _directory(trainer)
        for row, id_ in enumerate(batch.ids):
            path = self._file(directory, id_)
            with write_errors(path, _FIX):
                try:
                    _write(path, id_, *_pieces(prediction, row))
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
                    found = f"{len(os.fsencode(path))} bytes with its folders"
                    raise DataError(_too_long(id_, directory, found)) from error

    def _file(self, directory: Path, id_: str) -> Path:
        """Return the file of an utterance, and record that it is taken.

        Raises:
            DataError: If it is another one's, or its name is too long.
        """
        path = file_of(directory, id_)
        most = _name_max(directory)
        longest = max((len(os.fsencode(part)), part) for part in path.relative_to(directory).parts)
        if longest[0] > most:
            raise DataError(_too_long(id_, directory, f"{longest[0]} bytes, and it takes {most}"))
        key = str(path).casefold() if self._ignores_case else str(path)
        if key in self._written:
            other = self._written[key]
            what = "occurs twice" if other == id_ else f"makes the same file as {other!r}"
            raise DataError(
                f"the utterance id {id_!r} of the test split {what}, {path}: give each utterance "
                "an id of its own (its audio file's name, or data.source.id_column)"
            )
        self._written[key] = id_
        return path


def file_of(directory: Path, id_: str) -> Path:
    """Return the file of an utterance's hidden states: the folders of its id, below a directory.

    Different ids make different files, and none lies elsewhere: parts of an id that are no file
    names (empty, ``.`` and ``..``) and the characters ``%`` and NUL are percent-encoded.

    Args:
        directory: Directory of all files.
        id_: Id of the utterance.

    Example:
        >>> file_of(Path("out"), "84/121123/84-121123-0000").as_posix()
        'out/84/121123/84-121123-0000.safetensors'
        >>> file_of(Path("out"), "../x").as_posix()
        'out/%2E%2E/x.safetensors'
    """
    *folders, name = (part.replace("%", "%25").replace("\0", "%00") for part in id_.split("/"))
    safe = [_NO_NAMES.get(folder, folder) for folder in folders]
    return directory.joinpath(*safe, _NO_NAMES.get(name, name) + SUFFIX)


_NO_NAMES: Final = {"": "%", ".": "%2E", "..": "%2E%2E"}


def _directory(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / DIRECTORY


def _name_max(directory: Path) -> int:
    """Return the bytes of a file name that a directory's file system takes."""
    try:
        return os.pathconf(directory, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return _NAME_MAX


def _too_long(id_: str, directory: Path, what: str) -> str:
    return (
        f"the utterance id {id_!r} makes a longer file name than the file system of {directory} "
        f"takes ({what}): give the utterance a shorter id (its audio file's name, or "
        "data.source.id_column)"
    )


def _pieces(prediction: StudentOutput | WindowedOutput, row: int) -> tuple[int, Iterator[Tensor]]:
    """Return the frames of one utterance, and its hidden states in pieces along them."""
    if isinstance(prediction, WindowedOutput):
        return prediction.num_frames, iter(prediction)
    frames = int(prediction.num_frames[row])
    states = torch.stack([hidden[row, :frames] for hidden in prediction.hidden_states])
    return frames, iter([states])


def _write(path: Path, id_: str, frames: int, pieces: Iterator[Tensor]) -> None:
    """Write a safetensors file of which no more than one piece is in memory.

    Args:
        path: The file.
        id_: Of the utterance, for the metadata.
        frames: Of all pieces.
        pieces: (depth + 1, frames, width), one after another in time.

    Raises:
        OSError: If it can't be written.
    """
    first = next(pieces)
    num_states, _, width = first.shape
    shape = (num_states, frames, width)
    header = safetensors_header("hidden_states", first.dtype, shape, {"id": id_})
    write_pieces(path, header, frames, chain([first], pieces))

"""Hidden states of any speech encoder for any audio, a file of them for each file of audio.

An utterance longer than a window is computed window by window. For encoders over waveforms the
number of frames, their times, the waveform's normalisation and the front end's features are as if
the whole were computed at once; attention sees one window (``interstack.models.windows``). Whisper
sees one window as an utterance of its own, at most what it has positions for. Neighbouring windows
overlap by a quarter or more, and every frame is kept from the window in which it lies further from
the edge.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder, read_header
from interstack.data.audio_files import supported_audio
from interstack.errors import ConfigurationError, DataError
from interstack.models.front_end import num_frames, receptive_field
from interstack.models.teacher import Teacher
from interstack.models.whisper import FRAME_HOP, HOP, WINDOW
from interstack.models.windows import WindowedOutput, context_frames, plan_windows
from interstack.utils.atomic import write_whole
from interstack.utils.disk import write_errors
from interstack.utils.tensor_files import (
    TensorFormat,
    npy_header,
    safetensors_header,
    write_pieces,
)

Pool = Literal["none", "mean"]
SETTINGS_FILE: Final = "features.json"
TENSOR: Final = "hidden_states"
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16}
_FIX: Final = "free space, then give the same command again, which continues"


@dataclass(frozen=True)
class FeatureSettings:
    """What is computed, the same for all files of a directory.

    Attributes:
        model: Directory or hub id of the encoder.
        layers: Hidden states to keep; 0 is the encoder's input, k the output of layer k.
        format: Of the files.
        dtype: Of what they hold.
        pool: ``mean``: the mean over an utterance's frames, as SUPERB's tasks over utterances use.
        window_seconds: Longest audio that is computed at once.
        pad_to_30s: Let a Whisper attend to silence up to 30 s, as it was trained.
    """

    model: str
    layers: tuple[int, ...]
    format: TensorFormat = "safetensors"
    dtype: Literal["float32", "float16"] = "float32"
    pool: Pool = "none"
    window_seconds: float = 60.0
    pad_to_30s: bool = False


class FeatureFile(NamedTuple):
    """An audio file, and where its hidden states go."""

    audio: Path
    output: Path

    def is_written(self) -> bool:
        """Return whether the hidden states are there; a file is complete, or has another name.

        Raises:
            DataError: If the file system takes no such name.
        """
        try:
            return self.output.exists()
        except OSError as error:
            raise DataError(
                f"{self.output} can't be written ({error.strerror}): rename {self.audio}"
            ) from error


def list_files(source: Path, output: Path, settings: FeatureSettings) -> list[FeatureFile]:
    """Pair each audio file with the file of its hidden states, in folders like the source's.

    Args:
        source: A folder, or one audio file.
        output: Directory of the hidden states.
        settings: The settings.

    Raises:
        DataError: If there is no audio, or two files of audio would make one file.
    """
    if not source.exists():
        raise DataError(f"--audio is {source}, which is not there: give a folder or an audio file")
    folder = source if source.is_dir() else source.parent
    paths = [Path(path) for path in supported_audio(source)] if source.is_dir() else [source]
    if not paths:
        raise DataError(f"--audio is {source}, which holds no audio: give another folder")
    taken: dict[str, Path] = {}
    files = []
    for path in paths:
        target = output / path.relative_to(folder).with_suffix(f".{settings.format}")
        other = taken.setdefault(os.fspath(target).casefold(), path)
        if other is not path:
            raise DataError(
                f"{other} and {path} would both write {target}: rename one of them, or give each "
                "folder an --output of its own"
            )
        files.append(FeatureFile(path, target))
    return files


def open_output(output: Path, settings: FeatureSettings, fingerprint: str) -> None:
    """Make the directory of hidden states, or continue one that was made with the same settings.

    Args:
        output: The directory.
        settings: The settings.
        fingerprint: Of the model's weights.

    Raises:
        ConfigurationError: If it was made with other settings, or by another model.
        InterstackError: If it can't be written.
    """
    path = output / SETTINGS_FILE
    facts = asdict(settings) | {"layers": list(settings.layers), "fingerprint": fingerprint}
    del facts["model"]  # wherever it lies
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path} is damaged: give another --output") from error
        differing = sorted(key for key in facts if earlier.get(key) != facts[key])
        if differing:
            was = ", ".join(f"{key} {earlier.get(key)}" for key in differing)
            raise ConfigurationError(
                f"--output is {output}, which was made with other settings ({was}): give these, or "
                "another --output"
            )
        return
    with write_errors(output, "give another --output"):
        output.mkdir(parents=True, exist_ok=True)
        content = {"model": settings.model, "settings": facts}
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


class FeatureExtractor:
    """Computes and writes the hidden states of audio files.

    Args:
        settings: The settings.
        device: Where to compute.

    Raises:
        ConfigurationError: If the model has no such layers, or the window holds no frame.
        TeacherError: If the model can't be found or loaded.
    """

    def __init__(self, settings: FeatureSettings, device: torch.device) -> None:
        self.settings = settings
        self.model = Teacher(settings.model, settings.layers, pad_to_30s=settings.pad_to_30s).to(
            device
        )
        self._device = device
        self._window = int(settings.window_seconds * SAMPLE_RATE)
        if self.model.max_samples is not None:
            self._window = min(self._window, self.model.max_samples)
        needed = receptive_field(self.model.config) if self.model.takes_waveform else WINDOW
        if self._window < needed:
            raise ConfigurationError(
                f"--window-seconds is {settings.window_seconds}, but one frame needs "
                f"{needed / SAMPLE_RATE} s: raise it"
            )
        self._decode = Decoder()

    def write(self, file: FeatureFile) -> int:
        """Compute and write one file's hidden states.

        Returns:
            Samples of its audio at 16 kHz.

        Raises:
            DataError: If the audio can't be read, or is shorter than one frame.
            InterstackError: If the file can't be written.
        """
        name = os.fspath(file.audio)
        waveform = self._decode(read_header(name, name, name))
        frames = self._num_frames(len(waveform))
        if not frames:
            raise DataError(f"{name} lasts {len(waveform)} samples, which make no frame: remove it")
        dtype = DTYPES[self.settings.dtype]
        pieces: Iterator[Tensor] = (
            piece.to(dtype) for piece in self._pieces(waveform.to(self._device))
        )
        width, layers = self.model.width, len(self.settings.layers)
        shape: tuple[int, ...] = (layers, frames, width)
        if self.settings.pool == "mean":
            frames, shape = 1, (layers, width)
            pieces = iter([self._mean(waveform.to(self._device)).to(dtype)])
        if self.settings.format == "npy":
            header = npy_header(dtype, shape)
        else:
            header = safetensors_header(TENSOR, dtype, shape, self._metadata(name))
        with write_errors(file.output, _FIX):
            write_pieces(file.output, header, frames, pieces)
        return len(waveform)

    def _num_frames(self, num_samples: int) -> int:
        if self.model.takes_waveform:
            return int(num_frames(self.model.config, torch.tensor(num_samples)))
        return -(-(num_samples // HOP) // 2) if num_samples >= WINDOW else 0

    def _metadata(self, name: str) -> dict[str, str]:
        return {
            "audio": name,
            "layers": " ".join(map(str, self.settings.layers)),
            "first_frame_centre": str(self.model.first_frame_centre),
            "frame_hop": str(self.model.frame_hop),
        }

    def _mean(self, waveform: Tensor) -> Tensor:
        """Return the mean over time, (layers, 1, width)."""
        total, frames = torch.zeros((), dtype=torch.float64, device=waveform.device), 0
        for piece in self._pieces(waveform):
            total = total + piece.double().sum(1, keepdim=True)
            frames += piece.shape[1]
        return (total / frames).float()

    @torch.no_grad()
    def _pieces(self, waveform: Tensor) -> Iterator[Tensor]:
        """Yield hidden states (layers, some frames, width) float32, one window after another."""
        if len(waveform) <= self._window:
            yield self._whole(waveform)
        elif self.model.takes_waveform:
            body: Any = self.model.body
            windows = WindowedOutput(
                body,
                waveform,
                self._window,
                normalises_waveform=self.model.normalises_waveform,
            )
            for states in windows:
                yield states[list(self.settings.layers)]
        else:
            yield from self._of_log_mel(waveform)

    def _of_log_mel(self, waveform: Tensor) -> Iterator[Tensor]:
        """Yield the same of a Whisper, each window an utterance of its own."""
        frames, window = self._num_frames(len(waveform)), self._window // FRAME_HOP
        for each in plan_windows(frames, window, context_frames(window, 0)):
            states = self._whole(waveform[each.begin * FRAME_HOP : each.end * FRAME_HOP])
            yield states[:, each.first - each.begin : each.last - each.begin]

    def _whole(self, waveform: Tensor) -> Tensor:
        output = self.model(waveform[None], torch.tensor([len(waveform)], device=waveform.device))
        frames = int(output.num_frames[0])
        return torch.stack([states[0, :frames] for states in output.hidden_states])


def parse_layers(words: Sequence[str], num_layers: int) -> tuple[int, ...]:
    """Read ``all``, ``last`` or numbers of hidden states.

    Args:
        words: What the user gave.
        num_layers: Of the model.

    Raises:
        ConfigurationError: If there are no such layers.
    """
    if list(words) == ["all"]:
        return tuple(range(num_layers + 1))
    if list(words) == ["last"]:
        return (num_layers,)
    if not all(word.isdecimal() and int(word) <= num_layers for word in words):
        raise ConfigurationError(
            f"--layers is {' '.join(words)}: give all, last, or numbers from 0 (the encoder's "
            f"input) to {num_layers}"
        )
    return tuple(sorted({int(word) for word in words}))

"""One utterance: its audio file, its length by the header, and its samples."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.headers import UNKNOWN, length_by_frames, truncation
from interstack.data.skips import Tolerance
from interstack.errors import DataError

_DECODED_IN_ORDER: Final = frozenset({"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "OPUS"})
"""Codecs whose frames depend on earlier ones: after a seek their samples are slightly others, and
libmpg123 complains on the terminal."""


class Utterance(NamedTuple):
    """An utterance's audio, still encoded, with what its header states.

    A lhotse cut holds the same and much more, at some 3 kB each; an epoch's batches are built from
    all of a corpus' utterances, and every loader worker holds them, so these are kept small.

    Attributes:
        id: Unique within a split.
        audio: Path of the audio file, or its bytes (streams).
        num_source_samples: Samples a channel in the file, at the file's own rate.
        sample_rate: The file's own rate in Hz.
        num_channels: Channels in the file.
    """

    id: str
    audio: str | bytes
    num_source_samples: int
    sample_rate: int = SAMPLE_RATE
    num_channels: int = 1

    @property
    def num_samples(self) -> int:
        """Samples after resampling to 16 kHz (rounded up, as torchaudio's resample does)."""
        return -(-self.num_source_samples * SAMPLE_RATE // self.sample_rate)

    @property
    def name(self) -> str:
        """Its name in messages: the file's path, or the id where there is no file."""
        return self.audio if isinstance(self.audio, str) else self.id


@contextmanager
def open_audio(audio: str | bytes, name: str) -> Iterator[soundfile.SoundFile]:
    """Open an audio file, or the bytes of one, for reading.

    The file's name does not decide its format: libsndfile would take any content for headerless
    samples where the suffix is that of such a format.

    Raises:
        DataError: If it is missing, out of reach, empty or no audio that libsndfile reads.
    """
    with ExitStack() as opened:
        source: int | io.BytesIO
        if isinstance(audio, bytes):
            source = io.BytesIO(audio)
        else:
            source = _open_file(audio, name)
            opened.callback(os.close, source)
        try:
            file = soundfile.SoundFile(source, closefd=False)
        except soundfile.LibsndfileError as error:
            raise DataError(
                f"{name} can't be read as audio ({_reason(error)}): fetch it again or remove it"
            ) from error
        yield opened.enter_context(file)


def _open_file(path: str, name: str) -> int:
    """Return a descriptor of a regular file that has content."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(
            f"{name} can't be opened ({_why_unreachable(path, error)}): see that it is there and "
            "readable"
        ) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return descriptor
    os.close(descriptor)
    what = "empty (0 bytes)" if stat.S_ISREG(status.st_mode) else "no regular file"
    raise DataError(f"{name} is {what}: fetch it again or remove it")


def _why_unreachable(path: str, error: OSError) -> str:
    """Describe why a file can't be opened."""
    if not isinstance(error, FileNotFoundError):
        return error.strerror or type(error).__name__
    gone = [folder for folder in Path(path).parents if not folder.exists()]
    if gone:
        return f"there is no folder {gone[-1]}"
    if Path(path).is_symlink():
        return f"it is a link to {Path(path).readlink()}, which is not there"
    return error.strerror or type(error).__name__


def _reason(error: soundfile.LibsndfileError) -> str:
    """Return libsndfile's reason without the descriptor or object that it calls the file."""
    return str(error.error_string).strip().removeprefix("Error : ").rstrip(".")


def read_samples(
    audio: str | bytes, name: str, start: int = 0, length: int = -1
) -> tuple[NDArray[np.float32], int]:
    """Decode audio; all of interstack does it here.

    Args:
        audio: Path of the audio file, or its bytes.
        name: Its name in messages.
        start: First sample, at the file's own rate.
        length: Samples from there on that there have to be; -1 for all that the header states.

    Returns:
        (length, channels) float32 in [-1, 1], and the file's own rate in Hz.

    Raises:
        DataError: If it can't be opened, is corrupt, shorter than its header states, or has
            samples that are not finite.
    """
    with open_audio(audio, name) as file:
        if length < 0:
            length = _num_samples(file, audio, name) - start
        try:
            before = start if file.subtype in _DECODED_IN_ORDER else 0
            file.seek(start - before)
            samples = file.read(before + length, dtype="float32", always_2d=True)[before:]
        except soundfile.LibsndfileError as error:
            raise DataError(
                f"{name} is corrupt ({_reason(error)}): fetch it again or remove it"
            ) from error
        rate = int(file.samplerate)
    if len(samples) < length:
        raise DataError(
            f"{name} is cut off: {len(samples)} samples at {start}, {length} expected: fetch it "
            "again or remove it"
        )
    if not np.isfinite(samples).all():
        raise DataError(f"{name} holds samples that are not finite numbers: remove it")
    return samples, rate


def _num_samples(file: soundfile.SoundFile, audio: str | bytes, name: str) -> int:
    """Return the samples a channel that a header states.

    Raises:
        DataError: If there are none, or fewer in the file than its header states.
    """
    # A FLAC whose encoder was cut off states no length, which libsndfile reports as 2⁶³ − 1.
    if not 0 < file.frames < 2**62:
        raise DataError(f"{name} holds no samples: fetch it again or remove it")
    try:
        missing = truncation(file.name, file.frames)
        counted = length_by_frames(audio) if file.format == "MP3" else None
    except OSError as error:
        raise DataError(
            f"{name} can't be read ({error.strerror}): see that it is there and readable"
        ) from error
    if missing:
        raise DataError(f"{name} is cut off, {missing}: fetch it again or remove it")
    if counted == UNKNOWN:
        raise DataError(
            f"{name} is an MP3 of variable bit rate that states no length, which libsndfile can't "
            "read to its end: convert it to FLAC or remove it"
        )
    return int(file.frames) if counted is None else counted


def read_header(id_: str, audio: str | bytes, name: str) -> Utterance:
    """Describe an utterance by its audio's header, without decoding it.

    Raises:
        DataError: If the audio is missing, empty, without samples or unreadable.
    """
    with open_audio(audio, name) as file:
        return Utterance(
            id_, audio, _num_samples(file, audio, name), file.samplerate, file.channels
        )


CropPlace = Literal["random", "fixed"]
"""Where training crops what is too long: ``random``, at another position each epoch, or ``fixed``,
at one that the utterance's id alone decides, so that its targets can be cached."""


@dataclass(frozen=True)
class Decoder:
    """Decodes utterances to mono float32 waveforms at 16 kHz, longer ones cropped.

    Attributes:
        max_samples: Longest waveform at 16 kHz; None leaves every utterance whole.
        epoch: Epoch of training, which moves the crops; None crops from the start.
        seed: Seed of the crops; `fixed` ones are the same for every seed.
        place: Where training crops.
    """

    max_samples: int | None = None
    epoch: int | None = None
    seed: int = 0
    place: CropPlace = "random"

    def __call__(self, utterance: Utterance) -> Tensor:
        """Return the waveform, (num_samples,) float32.

        Raises:
            DataError: If the audio is corrupt, or shorter than its header states.
        """
        start, length = self.crop(utterance)
        if utterance.sample_rate == SAMPLE_RATE:
            return torch.from_numpy(_read(utterance, start, length))
        from torchaudio.functional import resample  # slow to import, and most corpora are at 16 kHz

        whole = torch.from_numpy(_read(utterance, 0, utterance.num_source_samples))
        resampled: Tensor = resample(whole, utterance.sample_rate, SAMPLE_RATE)
        return resampled[start : start + length].clone()

    def crop(self, utterance: Utterance) -> tuple[int, int]:
        """Return the crop's first sample and its length, at 16 kHz.

        The position depends on seed, epoch and id at most, so that neither workers, ranks nor a
        resumed run change it.
        """
        spare = utterance.num_samples - (self.max_samples or utterance.num_samples)
        if spare <= 0:
            return 0, utterance.num_samples
        assert self.max_samples is not None
        if self.epoch is None:
            return 0, self.max_samples
        moving = f"{self.seed}/{self.epoch}/" if self.place == "random" else ""
        key = f"{moving}{utterance.id}".encode()
        draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        return draw % (spare + 1), self.max_samples


def _read(utterance: Utterance, start: int, length: int) -> NDArray[np.float32]:
    """Read samples [start, start + length) at the file's own rate, channels averaged."""
    samples, _ = read_samples(utterance.audio, utterance.name, start, length)
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return np.ascontiguousarray(mono, dtype=np.float32)


def decode_each(
    utterances: Iterable[Utterance], decode: Decoder, tolerance: Tolerance
) -> Iterator[tuple[Utterance, Tensor]]:
    """Yield utterances with their waveforms, and count what can't be read instead of yielding it.

    Args:
        utterances: What to decode.
        decode: How.
        tolerance: Whether anything may be skipped, and what counts it.

    Raises:
        DataError: If audio can't be read and nothing is to be skipped, or too much can't.
    """
    for utterance in utterances:
        try:
            waveform = decode(utterance)
        except DataError as error:
            tolerance.failed(error)
            continue
        tolerance.passed()
        yield utterance, waveform

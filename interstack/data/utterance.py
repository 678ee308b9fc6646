"""One utterance before it is decoded: where its audio lies and how long it is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import soundfile

from interstack.constants import SAMPLE_RATE
from interstack.errors import DataError


class Utterance(NamedTuple):
    """An utterance's audio, still encoded, with what its header says.

    A lhotse cut says the same and much more, at some 3 kB each; an epoch's batches are built from
    all of a corpus' utterances, and every loader worker holds them, so these are kept small.

    Attributes:
        id: unique within a split.
        audio: path of the audio file, or its bytes (streams).
        num_source_samples: samples a channel in the file, at the file's own rate.
        sample_rate: the file's own rate in Hz.
        num_channels: channels in the file.
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
        """What to call it in a message: the file's path, or the id where there is no file."""
        return self.audio if isinstance(self.audio, str) else self.id


def open_audio(audio: str | bytes, name: str) -> soundfile.SoundFile:
    """Opens an audio file, or the bytes of one, for reading.

    Raises:
        DataError: it is missing, out of reach, empty or no audio that libsndfile reads.
    """
    try:
        if isinstance(audio, bytes):
            return soundfile.SoundFile(io.BytesIO(audio))
        if Path(audio).stat().st_size == 0:
            raise DataError(f"{name} is empty (0 bytes); fetch it again or remove it.")
        return soundfile.SoundFile(audio)
    except (soundfile.LibsndfileError, OSError) as error:
        unreachable = _why_unreachable(audio) if isinstance(audio, str) else None
        if unreachable:
            raise DataError(
                f"{name} can't be opened ({unreachable}); see that it is there and readable."
            ) from error
        raise DataError(
            f"{name} can't be read as audio ({error}); fetch it again or remove it, "
            "or set data.on_corrupt=skip."
        ) from error


def _why_unreachable(file: str) -> str | None:
    """Says why a file can't even be opened, or returns None if it can.

    libsndfile calls it a "System error", whatever it is.
    """
    try:
        with Path(file).open("rb"):
            return None
    except FileNotFoundError as error:
        gone = [folder for folder in Path(file).parents if not folder.exists()]
        return f"there is no folder {gone[-1]}" if gone else error.strerror
    except OSError as error:
        return error.strerror


def read_header(id_: str, audio: str | bytes, name: str) -> Utterance:
    """Describes an utterance by its audio's header, without decoding it.

    Raises:
        DataError: the audio is missing, empty, without samples or unreadable.
    """
    with open_audio(audio, name) as file:
        # A FLAC whose encoder was cut off states no length, which libsndfile reports as 2⁶³ − 1.
        if not 0 < file.frames < 2**62:
            raise DataError(f"{name} holds no samples; fetch it again or remove it.")
        return Utterance(id_, audio, file.frames, file.samplerate, file.channels)

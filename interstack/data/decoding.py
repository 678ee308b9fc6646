"""From an utterance's encoded audio to a waveform: decode, mix to mono, resample, crop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.tolerance import Tolerance
from interstack.data.utterance import Utterance, read_samples
from interstack.errors import DataError

CropPlace = Literal["random", "fixed"]
"""Where training crops what is too long: ``random``, at another place each epoch, or ``fixed``, at
one that the utterance's id decides once and for all, so that its targets can be cached."""


@dataclass(frozen=True)
class Decoder:
    """Decodes utterances to mono float32 waveforms at 16 kHz, longer ones cropped.

    Attributes:
        max_samples: longest waveform at 16 kHz; None leaves every utterance whole.
        epoch: epoch of training, which moves the crops; None crops from the start.
        seed: seed of the crops; `fixed` ones are the same for every seed.
        place: where training crops.
    """

    max_samples: int | None = None
    epoch: int | None = None
    seed: int = 0
    place: CropPlace = "random"

    def __call__(self, utterance: Utterance) -> Tensor:
        """Returns the waveform, (num_samples,) float32.

        Raises:
            DataError: the audio is corrupt, or shorter than its header says.
        """
        start, length = self.crop(utterance)
        if utterance.sample_rate == SAMPLE_RATE:
            return torch.from_numpy(_read(utterance, start, length))
        # torchaudio is imported only here: it is in maintenance, and most corpora are at 16 kHz.
        from torchaudio.functional import resample

        whole = torch.from_numpy(_read(utterance, 0, utterance.num_source_samples))
        resampled: Tensor = resample(whole, utterance.sample_rate, SAMPLE_RATE)
        return resampled[start : start + length].clone()

    def crop(self, utterance: Utterance) -> tuple[int, int]:
        """Returns the crop's first sample and its length, at 16 kHz.

        The place depends on seed, epoch and id at most, so that neither workers, ranks nor a
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


def _read(
    utterance: Utterance, start: int, length: int
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
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

"""The batch that training, validation and prediction take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interstack.constants import SAMPLE_RATE


class StoredTargets(NamedTuple):
    """What a target cache holds of a batch's utterances, padded to the longest of them.

    Attributes:
        values: (batch, frames, channels) in the cache's format, zeros past an utterance's end.
        scale: (batch, channels), or None.
        offset: (batch, channels), or None.
        num_frames: (batch,) int64, the valid frames.
    """

    values: Tensor
    scale: Tensor | None
    offset: Tensor | None
    num_frames: Tensor


class Batch(NamedTuple):
    """Utterances padded to the longest of them.

    Attributes:
        waveforms: (batch, max_num_samples) float32 in [-1, 1] at 16 kHz, zeros after each end. Or
            (batch, 0) where the stored targets hold all that a model needs of the audio.
        num_samples: (batch,) int64, the valid samples of each utterance.
        ids: One utterance id a row.
        targets: The teacher's, if they come from a cache.
    """

    waveforms: Tensor
    num_samples: Tensor
    ids: tuple[str, ...]
    targets: StoredTargets | None = None

    @property
    def seconds(self) -> Tensor:
        """Seconds of valid audio, a 0-dim tensor: reading it as a float would stall a GPU."""
        return self.num_samples.sum() / SAMPLE_RATE


def collate(waveforms: Sequence[Tensor], ids: Sequence[str]) -> Batch:
    """Pad 1-D waveforms with zeros on the right into one batch.

    Raises:
        ValueError: If there is no waveform, or not one id for each.
    """
    if not waveforms or len(waveforms) != len(ids):
        raise ValueError(f"{len(waveforms)} waveforms and {len(ids)} ids do not make a batch")
    return Batch(
        waveforms=pad_sequence(list(waveforms), batch_first=True),
        num_samples=torch.tensor([len(waveform) for waveform in waveforms]),
        ids=tuple(ids),
    )

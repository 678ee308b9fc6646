"""From utterances to padded batches: each is decoded; what is corrupt is skipped or reported."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from interstack.data.audio import Utterance
from interstack.data.base import Delivery, FeedSettings, Split
from interstack.data.batch import Batch, collate
from interstack.data.datamodule import SpeechDataModule
from interstack.data.skips import SkipCounter
from interstack.errors import DataError


class BatchAssembler:
    """Decodes a batch's utterances and pads them together, with their targets from a cache.

    Args:
        settings: How long utterances may be, and what to do with corrupt ones.
        epoch: Epoch of training, which moves the crops; None for evaluation.
    """

    def __init__(self, settings: FeedSettings, epoch: int | None) -> None:
        self.decode = settings.decoder(epoch)
        self.skips = settings.skips
        self.settings = settings
        self._tolerance = settings.tolerance()

    def __call__(self, utterances: Sequence[Utterance]) -> Batch | None:
        """Return the batch, or None if all of its utterances were skipped.

        Raises:
            DataError: If an utterance is corrupt and must not be skipped, or too many are.
        """
        waveforms, kept = [], []
        for utterance in utterances:
            try:
                waveforms.append(self._waveform(utterance))
            except DataError as error:
                self._tolerance.failed(error)
            else:
                self._tolerance.passed()
                kept.append(utterance)
        if not kept:
            return None
        ids = [utterance.id for utterance in kept]
        batch = collate(waveforms, ids)
        targets = self.settings.targets
        if targets is None:
            return batch
        lengths = torch.tensor([self.decode.crop(utterance)[1] for utterance in kept])
        return batch._replace(num_samples=lengths, targets=targets.collate(ids))

    def _waveform(self, utterance: Utterance) -> Tensor:
        """Return the waveform; an empty one where the targets replace the audio.

        Raises:
            DataError: If the audio is corrupt, or not what the targets were computed from.
        """
        targets = self.settings.targets
        self.settings.check_targets(utterance, self.decode.crop(utterance))
        if targets is None:
            return self.decode(utterance)
        if targets.replaces_audio:
            return torch.empty(0)
        waveform = self.decode(utterance)
        targets.check_audio(utterance.id, checksum(waveform))
        return waveform


def checksum(waveform: Tensor) -> int:
    """Return the CRC-32 of a waveform's samples as float32."""
    return zlib.crc32(waveform.contiguous().numpy().data)


class BatchDataset(Dataset[Delivery]):
    """Known batches of utterances, decoded on access; item i is batch `first_batch` + i.

    Args:
        batches: The utterances of every batch, in the order of training.
        assemble: Makes a batch of utterances.
        first_batch: Batches to skip.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[Utterance]],
        assemble: BatchAssembler,
        first_batch: int = 0,
    ) -> None:
        self.batches = batches
        self.assemble = assemble
        self.first_batch = first_batch

    def __len__(self) -> int:
        return max(0, len(self.batches) - self.first_batch)

    def __getitem__(self, index: int) -> Delivery:
        """Return an item with what was skipped in it; see `batch`."""
        skips = self.assemble.skips
        skips.take()  # what was counted before, by others, is no part of this batch
        return Delivery(self.batch(self.first_batch + index), skips.take())

    def batch(self, index: int) -> Batch | DataError | None:
        """Return batch `index`, or the error that prevents it.

        Every step needs a batch, or ranks would fall out of step: one whose utterances are all
        corrupt is replaced by the next (the last by the first, skipped or not). A prediction
        has no such steps, and each utterance once: None stands for such a batch there.
        """
        try:
            if self.assemble.settings.whole:
                return self.assemble(self.batches[index])
            for offset in range(len(self.batches)):
                batch = self.assemble(self.batches[(index + offset) % len(self.batches)])
                if batch is not None:
                    return batch
        except DataError as error:
            return error
        return DataError(f"none of {len(self.batches)} batches can be decoded: check the audio")


_CANDIDATES: Final = 16
"""Utterances of which the two shortest make the batch: seconds of computation at most."""


def first_utterances(datamodule: SpeechDataModule, split: Split, epoch: int | None) -> Batch | None:
    """Return a small batch of a split's first utterances, padded; None if none can be read.

    No loader takes part, so that none moves.

    Args:
        datamodule: With the split set up.
        split: The split.
        epoch: Of training, which moves crops; None for evaluation.

    Raises:
        DataError: If audio can't be read and must not be skipped.
    """
    utterances, settings = datamodule.utterances_once(split)
    settings = replace(settings, skips=SkipCounter())  # the run counts what it skips itself
    with closing(_iterated(utterances)) as iterator:
        candidates = list(islice(iterator, _CANDIDATES))
    shortest = sorted(candidates, key=lambda utterance: utterance.num_samples)[:2]
    assemble = BatchAssembler(settings, epoch)
    return assemble(shortest) or assemble(candidates)


def _iterated(utterances: Iterable[Utterance]) -> Generator[Utterance]:
    yield from utterances

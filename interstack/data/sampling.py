"""A small batch of a split's first utterances, for checks that come before a run."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Final

from interstack.data.assembling import BatchAssembler
from interstack.data.batch import Batch
from interstack.data.datamodule import SpeechDataModule
from interstack.data.left_out import LeftOutHere
from interstack.data.source import Split
from interstack.data.utterance import Utterance

_CANDIDATES: Final = 16
"""Utterances of which the two shortest make the batch: seconds of computation at most."""


def first_utterances(datamodule: SpeechDataModule, split: Split, epoch: int | None) -> Batch | None:
    """Return a small batch of a split's first utterances, padded; None if none can be read.

    No loader has a part in it, so that none moves.

    Args:
        datamodule: With the split set up.
        split: The split.
        epoch: Of training, which moves crops; None for evaluation.

    Raises:
        DataError: If audio can't be read and must not be left out.
    """
    utterances, settings = datamodule.utterances_once(split)
    settings = replace(settings, left_out=LeftOutHere())  # the run counts what it skips itself
    with closing(_iterated(utterances)) as iterator:
        candidates = list(islice(iterator, _CANDIDATES))
    shortest = sorted(candidates, key=lambda utterance: utterance.num_samples)[:2]
    assemble = BatchAssembler(settings, epoch)
    return assemble(shortest) or assemble(candidates)


def _iterated(utterances: Iterable[Utterance]) -> Generator[Utterance]:
    yield from utterances

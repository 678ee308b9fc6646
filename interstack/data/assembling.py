"""From utterances to padded batches: decode each, leave out or report what is corrupt."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch.utils.data import Dataset

from interstack.data.batch import Batch, collate
from interstack.data.decoding import Decoder
from interstack.data.feed import BatchOrError, FeedSettings
from interstack.data.utterance import Utterance
from interstack.errors import DataError

_log = logging.getLogger(__name__)


class BatchAssembler:
    """Decodes a batch's utterances and pads them together.

    Args:
        settings: how long utterances may be, and what to do with corrupt ones.
        epoch: epoch of training, which moves the crops; None for evaluation.
    """

    def __init__(self, settings: FeedSettings, epoch: int | None) -> None:
        self.decode = Decoder(settings.max_samples, epoch, settings.seed)
        self.settings = settings

    def __call__(self, utterances: Sequence[Utterance]) -> Batch | None:
        """Returns the batch, or None if all of its utterances were left out.

        Raises:
            DataError: an utterance is corrupt, and `on_corrupt` is "raise".
        """
        waveforms, ids = [], []
        for utterance in utterances:
            try:
                waveforms.append(self.decode(utterance))
            except DataError as error:
                handle_corrupt(error, self.settings)
            else:
                ids.append(utterance.id)
        return collate(waveforms, ids) if ids else None


def handle_corrupt(error: DataError, settings: FeedSettings) -> None:
    """Counts an utterance that can't be decoded, and warns of the first.

    Raises:
        DataError: `error` itself, if `on_corrupt` is "raise".
    """
    if settings.on_corrupt == "raise":
        raise error
    if settings.skipped.total == 0:
        _log.warning("Left out: %s Further ones are only counted.", error)
    settings.skipped.add()


class BatchDataset(Dataset[BatchOrError]):
    """Known batches of utterances; item i is batch i, decoded when asked for.

    Args:
        batches: the utterances of every batch, in the order of training.
        assemble: makes a batch of utterances.
    """

    def __init__(self, batches: Sequence[Sequence[Utterance]], assemble: BatchAssembler) -> None:
        self.batches = batches
        self.assemble = assemble

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> BatchOrError:
        """Returns batch `index`, or the error that prevents it, for the loader to raise.

        Every step needs a batch, or ranks would fall out of step: one whose utterances are all
        corrupt is replaced by the next.
        """
        try:
            for offset in range(len(self)):
                batch = self.assemble(self.batches[(index + offset) % len(self)])
                if batch is not None:
                    return batch
        except DataError as error:
            return error
        return DataError(f"None of {len(self)} batches can be decoded; check the audio files.")

"""From utterances to padded batches: decode each, leave out or report what is corrupt."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Dataset

from interstack.data.batch import Batch, collate
from interstack.data.decoding import Decoder
from interstack.data.feed import Delivery, FeedSettings
from interstack.data.utterance import Utterance
from interstack.errors import DataError


class BatchAssembler:
    """Decodes a batch's utterances and pads them together.

    Args:
        settings: how long utterances may be, and what to do with corrupt ones.
        epoch: epoch of training, which moves the crops; None for evaluation.
    """

    def __init__(self, settings: FeedSettings, epoch: int | None) -> None:
        self.decode = Decoder(settings.max_samples, epoch, settings.seed)
        self.left_out = settings.left_out
        self._tolerance = settings.tolerance()

    def __call__(self, utterances: Sequence[Utterance]) -> Batch | None:
        """Returns the batch, or None if all of its utterances were left out.

        Raises:
            DataError: an utterance is corrupt and must not be left out, or too many are.
        """
        waveforms, ids = [], []
        for utterance in utterances:
            try:
                waveforms.append(self.decode(utterance))
            except DataError as error:
                self._tolerance.failed(error)
            else:
                self._tolerance.passed()
                ids.append(utterance.id)
        return collate(waveforms, ids) if ids else None


class BatchDataset(Dataset[Delivery]):
    """Known batches of utterances, decoded when asked for; item i is batch `first_batch` + i.

    Args:
        batches: the utterances of every batch, in the order of training.
        assemble: makes a batch of utterances.
        first_batch: batches to pass over.
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
        """Returns an item with what was left out of it; see `batch`."""
        left_out = self.assemble.left_out
        left_out.take()  # what was counted before, by others, is no part of this batch
        return Delivery(self.batch(self.first_batch + index), left_out.take())

    def batch(self, index: int) -> Batch | DataError:
        """Returns batch `index`, or the error that prevents it.

        Every step needs a batch, or ranks would fall out of step: one whose utterances are all
        corrupt is replaced by the next (the last by the first, passed over or not).
        """
        try:
            for offset in range(len(self.batches)):
                batch = self.assemble(self.batches[(index + offset) % len(self.batches)])
                if batch is not None:
                    return batch
        except DataError as error:
            return error
        return DataError(f"None of {len(self.batches)} batches can be decoded; check the audio.")

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

    def __getitem__(self, index: int) -> Delivery:
        """Returns batch `index` with what was left out of it; see `batch`."""
        left_out = self.assemble.left_out
        left_out.take()  # what was counted before, by others, is no part of this batch
        return Delivery(self.batch(index), left_out.take())

    def batch(self, index: int) -> Batch | DataError:
        """Returns batch `index`, or the error that prevents it.

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

"""The clips of a probe: decoding, and skipping of what can't be used."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder, Utterance, decode_each
from interstack.data.base import Split
from interstack.data.folder import LibriSpeechFolder
from interstack.data.skips import OnCorrupt, SkipCounter, Tolerance, report_skipped
from interstack.errors import DataError

log = logging.getLogger(__name__)


class ClipReader:
    """Decodes the clips of a probe, the same ones for all of its upstreams.

    Args:
        on_corrupt: ``raise``: stop at a clip that can't be decoded or is too short, naming it;
            ``skip``: skip it, name the first and count them.
        min_samples: Samples at 16 kHz that a clip needs.
        needed_by: The upstream that needs so many.

    Attributes:
        skipped: Clips that were skipped, by split.
    """

    def __init__(
        self, on_corrupt: OnCorrupt = "raise", min_samples: int = 0, needed_by: str = ""
    ) -> None:
        self.on_corrupt = on_corrupt
        self.min_samples = min_samples
        self.needed_by = needed_by
        self.skipped: Counter[Split] = Counter()

    def list(self, folder: LibriSpeechFolder, split: Split) -> tuple[list[Utterance], set[str]]:
        """Return a split's utterances, and the ids of clips that are skipped by their headers.

        Raises:
            DataError: If the split can't be used, or two clips have the same id.
        """
        folder.root_option, folder.corrupt_option = "--corpus", "--on-corrupt"
        found, corrupt = folder.checked_utterances(split, self.on_corrupt)
        self.skipped[split] += len(corrupt)
        return found, set(corrupt)

    def decode(
        self, utterances: Iterable[Utterance], decode: Decoder, split: Split
    ) -> Iterator[tuple[Utterance, Tensor]]:
        """Yield the clips that can be used with their waveforms.

        Raises:
            DataError: If a clip can't be used and nothing is to be skipped.
        """
        utterances = list(utterances)
        limit = decode.max_samples
        cropped = [each for each in utterances if limit is not None and each.num_samples > limit]
        if cropped:
            log.warning(
                "%d clips of %s are longer than %g s and only their starts are used, the first: %s",
                *(len(cropped), split, (limit or 0) / SAMPLE_RATE, cropped[0].name),
            )
        tolerance = Tolerance(self.on_corrupt, SkipCounter())
        for utterance, waveform in decode_each(utterances, decode, tolerance):
            if len(waveform) >= self.min_samples:
                yield utterance, waveform
                continue
            error = DataError(
                f"{utterance.name} has {len(waveform)} samples at 16 kHz, but {self.needed_by} "
                f"needs {self.min_samples}: remove the clip, or give --on-corrupt skip"
            )
            if self.on_corrupt == "raise":
                raise error
            tolerance.skips.count_corrupt(error)
        counts = tolerance.skips.take()
        self.skipped[split] += counts.skipped
        report_skipped(counts.skipped, counts.example, f"clips of {split}")


def skipped_note(num_skipped: Mapping[Split, int]) -> str:
    """Return a sentence for a table's caption; empty if nothing was skipped."""
    parts = [f"{count} of {split}" for split, count in num_skipped.items() if count]
    return f" Clips that can't be used and are skipped: {', '.join(parts)}." if parts else ""

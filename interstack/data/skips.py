"""Utterances that can't be read or used: they end the run, or are skipped and counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from interstack.constants import SAMPLE_RATE
from interstack.errors import DataError

OnCorrupt: TypeAlias = Literal["raise", "skip"]

MOST_IN_A_ROW: Final = 32
"""Batches are drawn at random: so many failures one after another are no few corrupt files, but a
directory that has vanished or a disk that has gone, and skipping on would only end later."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skips:
    """Counts of utterances that were skipped or cropped.

    Attributes:
        skipped: Corrupt ones.
        too_short: Shorter than the least.
        example: What was wrong with the first corrupt one.
        cropped: Those of a stream's validation or test split of which only the start is evaluated.
        cropped_example: The first of them, and to what it is cropped.
    """

    skipped: int = 0
    too_short: int = 0
    example: str = ""
    cropped: int = 0
    cropped_example: str = ""

    def __add__(self, other: Skips) -> Skips:
        return Skips(
            self.skipped + other.skipped,
            self.too_short + other.too_short,
            self.example or other.example,
            self.cropped + other.cropped,
            self.cropped_example or other.cropped_example,
        )


class SkipCounter:
    """Counts what one process skips between a batch and the next."""

    def __init__(self) -> None:
        self._counts = Skips()

    def count_corrupt(self, error: DataError) -> None:
        """Count a corrupt utterance."""
        self._counts += Skips(skipped=1, example=str(error))

    def count_too_short(self) -> None:
        """Count a short utterance."""
        self._counts += Skips(too_short=1)

    def count_cropped(self, name: str, num_samples: int, length: int) -> None:
        """Count an utterance that is cropped where it is to be evaluated."""
        example = (
            f"{name} lasts {num_samples / SAMPLE_RATE:.1f} s and is cropped to data.max_seconds, "
            f"{length / SAMPLE_RATE:g} s"
        )
        self._counts += Skips(cropped=1, cropped_example=example)

    def take(self) -> Skips:
        """Return the counts and restart at zero."""
        counts, self._counts = self._counts, Skips()
        return counts


class Tolerance:
    """Skips what can't be read, until nothing can.

    Args:
        on_corrupt: ``raise`` tolerates nothing.
        skips: Counts what is skipped.
    """

    def __init__(self, on_corrupt: OnCorrupt, skips: SkipCounter) -> None:
        self.on_corrupt = on_corrupt
        self.skips = skips
        self._in_a_row = 0

    def passed(self) -> None:
        """Note an utterance that could be read."""
        self._in_a_row = 0

    def failed(self, error: DataError) -> None:
        """Count an utterance that can't be read.

        Raises:
            DataError: ``error`` itself, if nothing is to be skipped; or if too many have failed.
        """
        if self.on_corrupt == "raise":
            raise error
        self.skips.count_corrupt(error)
        self._in_a_row += 1
        if self._in_a_row == MOST_IN_A_ROW:
            raise DataError(
                f"{MOST_IN_A_ROW} utterances in a row can't be read, which is more than "
                f"skipping is meant for: see whether the data are still there; {error}"
            )


class SkipTotals:
    """Sums what was skipped in the batches of a run.

    A batch in hand is not final: a checkpoint may be written before it is trained on, and a resumed
    run then loads it again. It becomes final when its loader is asked for the next, and those that
    are accumulated for one optimizer step become final together.

    Args:
        announced: Warn of the first corrupt utterance as soon as it is met.
    """

    def __init__(self, announced: bool = True) -> None:
        self._announced = announced
        self._final = Skips()
        self._in_hand: dict[object, Skips] = {}

    def add(self, loader: object, counts: Skips, *, begins_step: bool = True) -> None:
        """Add the counts of the batch that a loader yields, and warn of the first of a kind.

        Args:
            loader: Anything that identifies one pass of a loader.
            counts: What was skipped in the batch.
            begins_step: Whether the loader's batches before it are trained on now.
        """
        if self._announced and counts.skipped and not self.total.skipped:
            _log.warning("Skipped: %s; further ones are only counted", counts.example)
        if self._announced and counts.cropped and not self.total.cropped:
            _log.warning(
                "%s: raise data.max_seconds to evaluate on all of it; further ones are only "
                "counted",
                counts.cropped_example,
            )
        if begins_step:
            self.finalise(loader)
        self._in_hand[loader] = self._in_hand.get(loader, Skips()) + counts

    def finalise(self, loader: object) -> None:
        """Make the counts of the batch in hand final: the loader continues, or is at its end."""
        self._final += self._in_hand.pop(loader, Skips())

    @property
    def total(self) -> Skips:
        """Everything so far, batches in hand included."""
        return sum(self._in_hand.values(), self._final)

    def state_dict(self) -> dict[str, int]:
        """Return the final counts, for a checkpoint."""
        counts = {"skipped": self._final.skipped, "too_short": self._final.too_short}
        return counts | ({"cropped": self._final.cropped} if self._final.cropped else {})

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the counts of a checkpoint."""
        self._final = Skips(state["skipped"], state["too_short"], cropped=state.get("cropped", 0))
        self._in_hand.clear()


def report_skipped(count: int, example: str, kind: str) -> None:
    """Log how many files or utterances were skipped, and what is wrong with the first; or nothing.

    Args:
        count: How many.
        example: What is wrong with the first.
        kind: What they are: "files of train".
    """
    if count:
        _log.warning("%d %s can't be read and are skipped, the first: %s", count, kind, example)

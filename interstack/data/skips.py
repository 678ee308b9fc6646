"""Utterances that can't be read or used: the end of a run, or a count."""

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


class Tolerance:
    """Leaves out what can't be read, until nothing can.

    Args:
        on_corrupt: "raise" tolerates nothing.
        left_out: counts what is left out.
    """

    def __init__(self, on_corrupt: OnCorrupt, left_out: LeftOutHere) -> None:
        self.on_corrupt = on_corrupt
        self.left_out = left_out
        self._in_a_row = 0

    def passed(self) -> None:
        """Notes an utterance that could be read."""
        self._in_a_row = 0

    def failed(self, error: DataError) -> None:
        """Counts an utterance that can't be read.

        Raises:
            DataError: `error` itself, if nothing is to be left out; or too many have failed.
        """
        if self.on_corrupt == "raise":
            raise error
        self.left_out.count_skipped(error)
        self._in_a_row += 1
        if self._in_a_row == MOST_IN_A_ROW:
            raise DataError(
                f"{MOST_IN_A_ROW} utterances in a row can't be read, which is more than "
                f"skipping is meant for: see whether the data are still there; {error}"
            )


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """Counts of utterances left out.

    Attributes:
        skipped: corrupt ones.
        too_short: shorter than the least.
        example: what was wrong with the first corrupt one.
        cropped: those of a stream's validation or test split of which only the start is evaluated.
        cropped_example: the first of them, and to what it is cropped.
    """

    skipped: int = 0
    too_short: int = 0
    example: str = ""
    cropped: int = 0
    cropped_example: str = ""

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(
            self.skipped + other.skipped,
            self.too_short + other.too_short,
            self.example or other.example,
            self.cropped + other.cropped,
            self.cropped_example or other.cropped_example,
        )


def report_skipped(count: int, example: str, kind: str) -> None:
    """Log how many files or utterances were skipped, and what is wrong with the first; or nothing.

    Args:
        count: How many.
        example: What is wrong with the first.
        kind: What they are: "files of train".
    """
    if count:
        _log.warning("%d %s can't be read and are skipped, the first: %s", count, kind, example)


class LeftOutHere:
    """Counts what one process leaves out between a batch and the next."""

    def __init__(self) -> None:
        self._counts = LeftOut()

    def count_skipped(self, error: DataError) -> None:
        """Counts a corrupt utterance."""
        self._counts += LeftOut(skipped=1, example=str(error))

    def count_too_short(self) -> None:
        """Counts a short utterance."""
        self._counts += LeftOut(too_short=1)

    def count_cropped(self, name: str, num_samples: int, length: int) -> None:
        """Counts an utterance that is cropped where it is to be evaluated."""
        example = (
            f"{name} lasts {num_samples / SAMPLE_RATE:.1f} s and is cropped to data.max_seconds, "
            f"{length / SAMPLE_RATE:g} s"
        )
        self._counts += LeftOut(cropped=1, cropped_example=example)

    def take(self) -> LeftOut:
        """Returns the counts and begins again at zero."""
        counts, self._counts = self._counts, LeftOut()
        return counts


class LeftOutSoFar:
    """Sums what was left out of the batches of a run.

    A batch in hand is not final: a checkpoint may be written before it is trained on, and a resumed
    run then loads it again. It becomes final when its loader is asked for the next, and those that
    are accumulated for one optimizer step become final together.

    Args:
        announced: Warn of the first corrupt utterance as soon as it is met.
    """

    def __init__(self, announced: bool = True) -> None:
        self._announced = announced
        self._final = LeftOut()
        self._in_hand: dict[object, LeftOut] = {}

    def hand_out(self, loader: object, counts: LeftOut, *, begins_step: bool = True) -> None:
        """Adds the counts of the batch that a loader hands out, and warns of the first of a kind.

        Args:
            loader: anything that stands for one pass of a loader.
            counts: what was left out of the batch.
            begins_step: whether the loader's batches before it are trained on now.
        """
        if self._announced and counts.skipped and not self.total.skipped:
            _log.warning("Left out: %s; further ones are only counted", counts.example)
        if self._announced and counts.cropped and not self.total.cropped:
            _log.warning(
                "%s: raise data.max_seconds to evaluate on all of it; further ones are only "
                "counted",
                counts.cropped_example,
            )
        if begins_step:
            self.settle(loader)
        self._in_hand[loader] = self._in_hand.get(loader, LeftOut()) + counts

    def settle(self, loader: object) -> None:
        """Makes the counts of the batch in hand final: the loader goes on, or is at its end."""
        self._final += self._in_hand.pop(loader, LeftOut())

    @property
    def total(self) -> LeftOut:
        """Everything so far, batches in hand included."""
        return sum(self._in_hand.values(), self._final)

    def state_dict(self) -> dict[str, int]:
        """Returns the final counts, for a checkpoint."""
        counts = {"skipped": self._final.skipped, "too_short": self._final.too_short}
        return counts | ({"cropped": self._final.cropped} if self._final.cropped else {})

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from the counts of a checkpoint."""
        self._final = LeftOut(state["skipped"], state["too_short"], cropped=state.get("cropped", 0))
        self._in_hand.clear()

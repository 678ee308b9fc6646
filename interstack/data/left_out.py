"""What is left out while loading: counted where audio is decoded, summed where batches arrive.

Counts travel with the batches. Like these they then depend neither on how far workers have run
ahead, nor on where a run was cut and resumed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from interstack.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """Counts of utterances left out.

    Attributes:
        skipped: corrupt ones.
        too_short: shorter than the least.
        example: what was wrong with the first corrupt one.
    """

    skipped: int = 0
    too_short: int = 0
    example: str = ""

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(
            self.skipped + other.skipped,
            self.too_short + other.too_short,
            self.example or other.example,
        )


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

    def take(self) -> LeftOut:
        """Returns the counts and begins again at zero."""
        counts, self._counts = self._counts, LeftOut()
        return counts


class LeftOutSoFar:
    """Sums what was left out of the batches of a run.

    A batch in hand is not final: a checkpoint may be written before it is trained on, and a resumed
    run then loads it again. It becomes final when its loader is asked for the next, and those that
    are accumulated for one optimizer step become final together.
    """

    def __init__(self) -> None:
        self._final = LeftOut()
        self._in_hand: dict[object, LeftOut] = {}

    def hand_out(self, loader: object, counts: LeftOut, *, begins_step: bool = True) -> None:
        """Adds the counts of the batch that a loader hands out, and warns of the first corruption.

        Args:
            loader: anything that stands for one pass of a loader.
            counts: what was left out of the batch.
            begins_step: whether the loader's batches before it are trained on now.
        """
        if counts.skipped and not self.total.skipped:
            _log.warning("Left out: %s Further ones are only counted.", counts.example)
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
        return {"skipped": self._final.skipped, "too_short": self._final.too_short}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from the counts of a checkpoint."""
        self._final = LeftOut(state["skipped"], state["too_short"])
        self._in_hand.clear()

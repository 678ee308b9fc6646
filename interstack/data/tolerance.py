"""What happens at an utterance that can't be read: the end, or a count."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from interstack.data.left_out import LeftOutHere
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

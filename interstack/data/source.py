"""Where speech comes from: the interface between a corpus and the data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

from interstack.data.feed import Feed, FeedSettings

Split: TypeAlias = Literal["train", "validation", "test"]


class SpeechSource(ABC):
    """A corpus with a train, a validation and a test split."""

    def prepare(self) -> None:
        """Fetches what is missing. Called in one process a machine, before `open`."""
        return

    @abstractmethod
    def open(self, split: Split, settings: FeedSettings) -> Feed:
        """Finds and checks a split, before any training.

        Raises:
            ConfigurationError: a setting does not suit this source or this split.
            DataError: the split is missing, empty or out of reach, or its audio unusable.
        """

"""Where speech comes from: the interface between a corpus and the data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, TypeAlias

from interstack.data.feed import Feed, FeedSettings

Split: TypeAlias = Literal["train", "validation", "test"]


class SpeechSource(ABC):
    """A corpus with a train, a validation and a test split."""

    section: str = "data.source"
    """What its options' names begin with in the command at hand, for messages."""
    corrupt_option: str = "data.on_corrupt"
    """The option that lets corrupt audio be skipped, for messages."""
    root_option: str | None = None
    """The option that names the corpus, for messages; None: the section's ``root``."""

    def prepare(self, splits: Sequence[Split] = ("train", "validation", "test")) -> None:
        """Fetches what is missing of some splits. Called in one process a machine, before `open`.

        Args:
            splits: the splits.
        """
        del splits

    @abstractmethod
    def open(self, split: Split, settings: FeedSettings) -> Feed:
        """Finds and checks a split, before any training.

        Raises:
            ConfigurationError: a setting does not suit this source or this split.
            DataError: the split is missing, empty or out of reach, or its audio unusable.
        """

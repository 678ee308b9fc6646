"""Which part of a list a process works on, decided by ids or numbers alone."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Self

from interstack.errors import ConfigurationError


@dataclass(frozen=True)
class Partition:
    """One of several parts that together hold every item once.

    Attributes:
        index: Which one, from 0.
        total: How many there are.
    """

    index: int = 0
    total: int = 1

    @classmethod
    def parse(cls, text: str | None, option: str = "--share") -> Self:
        """Read ``"3/8"``; by default torchrun's rank, or all of it.

        Args:
            text: The index from 0, and the total.
            option: The option's name, for the message.

        Raises:
            ConfigurationError: If there is no such partition.
        """
        if text is None:
            return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise ConfigurationError(
                f"{option} {text} has to be INDEX/TOTAL with an index from 0, as 0/8 to 7/8"
            )
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of_array(cls, text: str | None, option: str = "--share") -> Self:
        """Read ``"3/8"``; by default the index in a SLURM array, or all of it.

        Raises:
            ConfigurationError: If there is no such partition.
        """
        count = os.environ.get("SLURM_ARRAY_TASK_COUNT")
        index = os.environ.get("SLURM_ARRAY_TASK_ID")
        if text is None and count is not None and index is not None:
            first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
            return cls.parse(f"{int(index) - first}/{count}", option)
        return cls.parse(text or "0/1", option)

    def holds(self, id_: str) -> bool:
        """Return whether an utterance belongs to this partition."""
        digest = hashlib.blake2b(id_.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.total == self.index

    def __str__(self) -> str:
        return f"{self.index:03d}-of-{self.total:03d}"

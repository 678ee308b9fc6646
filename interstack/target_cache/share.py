"""Which part of a corpus a process computes, decided by ids alone: nobody has to ask anybody."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import Self

from interstack.errors import ConfigurationError


@dataclass(frozen=True)
class Share:
    """One of several parts that together hold every utterance once.

    Attributes:
        index: Which one, from 0.
        total: How many there are.
    """

    index: int = 0
    total: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read ``"3/8"``; without a text take torchrun's rank, or all of it.

        Raises:
            ConfigurationError: If there is no such part.
        """
        if text is None:
            return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise ConfigurationError(
                f"--share {text} has to be INDEX/TOTAL with an index from 0, as 0/8 to 7/8"
            )
        return cls(int(match[1]), int(match[2]))

    def holds(self, id_: str) -> bool:
        """Tell whether an utterance belongs to this part."""
        digest = hashlib.blake2b(id_.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.total == self.index

    def __str__(self) -> str:
        return f"{self.index:03d}-of-{self.total:03d}"

"""What s3prl's experts log of a split."""

from __future__ import annotations

Scalars = dict[str, float]
"""What an expert has logged of a split, by its own names."""


class ScalarLog:
    """Takes what an expert would write for TensorBoard."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}

    def add_scalar(self, name: str, value: float, global_step: int = 0) -> None:  # noqa: ARG002
        """Keep a scalar; its name is ``task/split-metric``."""
        self.scalars[name.rpartition("/")[2]] = float(value)

    def of_split(self, split: str) -> Scalars:
        """Return what was logged of a split."""
        prefix = f"{split}-"
        return {
            name.removeprefix(prefix): value
            for name, value in self.scalars.items()
            if name.startswith(prefix)
        }

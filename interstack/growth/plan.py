"""A growth step as an index map: which layer of the present stack each grown layer comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from interstack.errors import ConfigurationError

TapPlacement = Literal["block_end", "original"]
"""Which layer of a block is tied to the teacher: its last one, or the one it began with."""


@dataclass(frozen=True)
class GrowthPlan:
    """How a stack of ``old_depth`` layers becomes one of ``depth`` layers.

    ``parents`` alone says what happens. The first layer of the grown stack with a given parent is
    that parent itself, moved to its new index (an *original*); every later one is a *clone* of it.

    Attributes:
        parents: For every layer of the grown stack, bottom first, the index of its parent in the
            present stack. Counted from 0.
        fresh_clones: Fill the clones' positions with newly initialised layers instead of copies.

    Raises:
        ConfigurationError: If a layer of the present stack is lost, or originals change order.
    """

    parents: tuple[int, ...]
    fresh_clones: bool = False

    def __post_init__(self) -> None:
        originals = [self.parents[index] for index in self.original_indices]
        if not originals or originals != list(range(max(self.parents) + 1)):
            raise ConfigurationError(
                f"the growth plan {list(self.parents)} loses layers of the present stack or "
                "changes their order: every parent from 0 up has to occur, first occurrences in "
                "order"
            )

    @property
    def original_indices(self) -> list[int]:
        """Index of every original in the grown stack, bottom first."""
        return [index for index in range(len(self.parents)) if not self.is_clone(index)]

    @property
    def old_depth(self) -> int:
        """Layers before the growth."""
        return max(self.parents) + 1

    @property
    def depth(self) -> int:
        """Layers after the growth."""
        return len(self.parents)

    @property
    def keeps_order(self) -> bool:
        """Whether clones stand next to their originals, so that no layer overtakes another."""
        return list(self.parents) == sorted(self.parents)

    def is_clone(self, index: int) -> bool:
        """Return whether the layer at this index of the grown stack is a clone."""
        return self.parents[index] in self.parents[:index]

    def move_taps(
        self, taps: Sequence[int], placement: TapPlacement = "block_end"
    ) -> tuple[int, ...]:
        """Follow tapped layers through the growth.

        With ``block_end``, where the operator keeps the layers' order, a tap moves up to the last
        clone of its layer: it stays on the end of its block. Other operators tear blocks apart;
        there the taps are spread evenly again, so that a tap keeps its relative depth. With
        ``original`` a tap stays on its layer, but the uppermost, which stays on the top layer.

        Args:
            taps: Indices of the tapped layers in the present stack, strictly increasing, the last
                one the top layer.
            placement: The policy above.

        Returns:
            Their indices in the grown stack, strictly increasing; the last is the top layer.
        """
        if placement == "original":
            return (*(self.parents.index(tap) for tap in taps[:-1]), self.depth - 1)
        if self.keeps_order:
            return tuple(self.depth - 1 - self.parents[::-1].index(tap) for tap in taps)
        return even_ends(self.depth, len(taps))


def even_ends(depth: int, parts: int) -> tuple[int, ...]:
    """Cut a stack into parts as even as can be and return the index of each part's last layer.

    Where there are more parts than layers, parts share layers: of three parts of one layer all end
    on it, of two layers one ends on the first and two on the second.

    Args:
        depth: Layers of the stack, 1 or more.
        parts: Number of parts, 1 or more.
    """
    if parts <= depth:
        return tuple((part + 1) * depth // parts - 1 for part in range(parts))
    return tuple(-(-(part + 1) * depth // parts) - 1 for part in range(parts))


def descend(lineage: Sequence[int], plan: GrowthPlan) -> tuple[int, ...]:
    """Carry a lineage through a growth.

    Args:
        lineage: For every layer of the present stack, the index of its ancestor in the first stack.
        plan: The growth.

    Returns:
        The same for every layer of the grown stack.
    """
    return tuple(lineage[parent] for parent in plan.parents)

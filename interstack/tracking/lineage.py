"""Which layer of the first stage each layer of a grown student descends from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from interstack.growth.plan import GrowthPlan

LAYER_COLUMNS: Final = ("layer", "name", "parent", "kind", "block", "place", "tap")
"""Keys of `layer_rows`: the layer's number from 1; block and place as ``2.3``, which stay readable
when layers are renumbered; its parent before the growth step; clone or original; its block, the
layer of the first stage that it descends from; its place in the block; whether it is tied to the
teacher."""


class BlockPosition(NamedTuple):
    """The block of a layer, and its place in it, both from 1; written as ``2.3``."""

    block: int
    place: int

    def __str__(self) -> str:
        return f"{self.block}.{self.place}"


def block_positions(lineage: Sequence[int]) -> list[BlockPosition]:
    """Return each layer's block and its place there, bottom first.

    Args:
        lineage: For every layer, the index of its ancestor in the first stack.

    Example:
        >>> [str(position) for position in block_positions((0, 0, 1, 1))]
        ['1.1', '1.2', '2.1', '2.2']
    """
    return [
        BlockPosition(ancestor + 1, lineage[: layer + 1].count(ancestor))
        for layer, ancestor in enumerate(lineage)
    ]


def layer_rows(
    lineage: Sequence[int], plan: GrowthPlan, tap_layers: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a row for each layer of a grown stack, bottom first; see `LAYER_COLUMNS`.

    Args:
        lineage: Of the grown stack.
        plan: The growth step that has made it.
        tap_layers: Indices of the tapped layers.
    """
    return [
        {
            "layer": layer + 1,
            "name": str(position),
            "parent": plan.parents[layer] + 1,
            "kind": "clone" if plan.is_clone(layer) else "original",
            "block": position.block,
            "place": position.place,
            "tap": layer in tap_layers,
        }
        for layer, position in enumerate(block_positions(lineage))
    ]

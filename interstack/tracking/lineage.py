"""The lineage of a grown stack as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from interstack.growth.plan import GrowthPlan

COLUMNS: Final = ("layer", "name", "parent", "kind", "block", "place", "tap")
"""Of a row: the layer's number from 1; block and place as ``2.3``, which stay readable when layers
are renumbered; its parent before the growth; clone or original; its block, the layer of the first
stage that it descends from; its place in it; whether it is tied to the teacher."""


def layer_rows(
    lineage: Sequence[int], plan: GrowthPlan, tap_layers: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a row for each layer of a grown stack, bottom first.

    Args:
        lineage: For every layer, the index of its ancestor in the first stack.
        plan: The growth that it has just gone through.
        tap_layers: Indices of the tapped layers.
    """
    names = block_names(lineage)
    return [
        {
            "layer": layer + 1,
            "name": names[layer],
            "parent": plan.parents[layer] + 1,
            "kind": "clone" if plan.is_clone(layer) else "original",
            "block": lineage[layer] + 1,
            "place": int(names[layer].partition(".")[2]),
            "tap": layer in tap_layers,
        }
        for layer in range(plan.depth)
    ]


def block_names(lineage: Sequence[int]) -> list[str]:
    """Return each layer's block and its place there, both from 1, as ``2.3``."""
    seen: dict[int, int] = {}
    names = []
    for ancestor in lineage:
        seen[ancestor] = seen.get(ancestor, 0) + 1
        names.append(f"{ancestor + 1}.{seen[ancestor]}")
    return names

"""The picture of interleaved growth, drawn from the growth plans themselves."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final, Literal

from interstack.growth.operators import interleave, plan_growth
from interstack.growth.plan import GrowthPlan, descend

Scheme = Literal["light", "dark"]

DEPTHS: Final = (3, 6, 9, 12)
_TAPS: Final = (4, 8, 12)
_COLOURS: Final[Mapping[Scheme, Mapping[str, tuple[str, ...]]]] = {
    "light": {
        "text": ("#1f2430",),
        "line": ("#8a94a6",),
        "fill": ("#4c78d0", "#c76b12", "#2f8a5f"),
    },
    "dark": {"text": ("#e6e9ef",), "line": ("#7d8799",), "fill": ("#7da2f0", "#eda259", "#66c397")},
}
_WIDTH, _HEIGHT, _GAP = 84, 20, 4
_COLUMN: Final = 176
_LEFT, _BOTTOM = 16, 320


def growth_picture(scheme: Scheme) -> str:
    """Return the stages side by side as an SVG.

    A box is a layer, a colour the layer of the first stage that it descends from. Full boxes are
    originals, hollow ones the clones of the last growth step; lines lead from parent to child.
    """
    colours = _COLOURS[scheme]
    text, line, fill = colours["text"][0], colours["line"][0], colours["fill"]
    width = _LEFT + 3 * _COLUMN + _WIDTH + 120
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_BOTTOM + 52}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        "<title>Interleaved growth from 3 to 12 layers: each block of layers gets a clone of its "
        "last layer, right after it</title>",
    ]
    lineage, plans = tuple(range(DEPTHS[0])), list[GrowthPlan]()
    stages = [lineage]
    for depth in DEPTHS[1:]:
        plans.append(plan_growth(interleave, lineage, depth))
        lineage = descend(lineage, plans[-1])
        stages.append(lineage)
    for index, plan in enumerate(plans):
        for child, parent in enumerate(plan.parents):
            dashes = "" if child in plan.original_places else ' stroke-dasharray="3 3"'
            x = _LEFT + index * _COLUMN + _WIDTH
            parts.append(
                f'<path d="M{x + 3} {_middle(parent)} L{x + _COLUMN - _WIDTH - 3} {_middle(child)}" '
                f'stroke="{line}" fill="none"{dashes}/>'
            )
    for index, lineage in enumerate(stages):
        originals = range(len(lineage)) if not index else plans[index - 1].original_places
        parts += _stage(index, lineage, set(originals), fill, text)
    x = _LEFT + 3 * _COLUMN + _WIDTH
    ends = [layer for layer, (own, above) in enumerate(pairwise((*stages[-1], -1))) if own != above]
    for layer, tap in zip(ends, _TAPS, strict=True):
        y = _middle(layer)
        parts.append(f'<path d="M{x + 3} {y} H{x + 22}" stroke="{text}" fill="none"/>')
        parts.append(f'<text x="{x + 27}" y="{y + 4}" fill="{text}">teacher {tap}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _stage(
    index: int, lineage: tuple[int, ...], originals: set[int], fill: tuple[str, ...], text: str
) -> list[str]:
    """Return the boxes of a stage, bottom up, and what stands below them."""
    x = _LEFT + index * _COLUMN
    parts = []
    for layer, ancestor in enumerate(lineage):
        colour = fill[ancestor]
        solid = layer in originals
        parts.append(
            f'<rect x="{x}" y="{_middle(layer) - _HEIGHT // 2}" width="{_WIDTH}" '
            f'height="{_HEIGHT}" rx="4" stroke="{colour}" stroke-width="2" '
            f'fill="{colour}"{"" if solid else " fill-opacity=" + chr(34) + "0.15" + chr(34)}/>'
        )
    centre = x + _WIDTH // 2
    words = (f"stage {index + 1}", f"{len(lineage)} layers")
    parts += [
        f'<text x="{centre}" y="{_BOTTOM + 22 + 17 * row}" text-anchor="middle" '
        f'fill="{text}">{each}</text>'
        for row, each in enumerate(words)
    ]
    return parts


def _middle(layer: int) -> int:
    return _BOTTOM - layer * (_HEIGHT + _GAP) - _HEIGHT // 2

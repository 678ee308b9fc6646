"""The picture of interleaved growth, drawn from the growth plans themselves."""

from __future__ import annotations

from itertools import pairwise
from typing import Final, Literal, NamedTuple

from interstack.growth.operators import interleave, plan_growth
from interstack.growth.plan import GrowthPlan, descend

Scheme = Literal["light", "dark"]


class Colours(NamedTuple):
    """Colours of a scheme.

    Attributes:
        text: Of words.
        line: From parent to child.
        layers: One for each layer of the first stage.
    """

    text: str
    line: str
    layers: tuple[str, ...]


DEPTHS: Final = (3, 6, 9, 12)
_TAPS: Final = (4, 8, 12)
_COLOURS: Final = {
    "light": Colours("#1f2430", "#8a94a6", ("#4c78d0", "#c76b12", "#2f8a5f")),
    "dark": Colours("#e6e9ef", "#7d8799", ("#7da2f0", "#eda259", "#66c397")),
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
    width = _LEFT + 3 * _COLUMN + _WIDTH + 136
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
            dashes = "" if child in plan.original_indices else ' stroke-dasharray="3 3"'
            begin = _LEFT + index * _COLUMN + _WIDTH + 3
            end = begin + _COLUMN - _WIDTH - 6
            parts.append(
                f'<path d="M{begin} {_middle(parent)} L{end} {_middle(child)}" '
                f'stroke="{colours.line}" fill="none"{dashes}/>'
            )
    for index, lineage in enumerate(stages):
        originals = range(len(lineage)) if not index else plans[index - 1].original_indices
        parts += _stage(index, lineage, set(originals), colours)
    x = _LEFT + 3 * _COLUMN + _WIDTH
    ends = [layer for layer, (own, above) in enumerate(pairwise((*stages[-1], -1))) if own != above]
    for layer, tap in zip(ends, _TAPS, strict=True):
        y = _middle(layer)
        parts.append(f'<path d="M{x + 3} {y} H{x + 22}" stroke="{colours.text}" fill="none"/>')
        parts.append(
            f'<text x="{x + 27}" y="{y + 4}" fill="{colours.text}">teacher layer {tap}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _stage(
    index: int, lineage: tuple[int, ...], originals: set[int], colours: Colours
) -> list[str]:
    """Return the boxes of a stage, bottom up, and what stands below them."""
    x = _LEFT + index * _COLUMN
    parts = []
    for layer, ancestor in enumerate(lineage):
        colour = colours.layers[ancestor]
        opacity = "" if layer in originals else ' fill-opacity="0.15"'
        parts.append(
            f'<rect x="{x}" y="{_middle(layer) - _HEIGHT // 2}" width="{_WIDTH}" '
            f'height="{_HEIGHT}" rx="4" stroke="{colour}" stroke-width="2" '
            f'fill="{colour}"{opacity}/>'
        )
    centre = x + _WIDTH // 2
    words = (f"stage {index + 1}", f"{len(lineage)} layers")
    parts += [
        f'<text x="{centre}" y="{_BOTTOM + 22 + 17 * row}" text-anchor="middle" '
        f'fill="{colours.text}">{each}</text>'
        for row, each in enumerate(words)
    ]
    return parts


def _middle(layer: int) -> int:
    return _BOTTOM - layer * (_HEIGHT + _GAP) - _HEIGHT // 2

"""Pictures of layers' similarity, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike
from PIL import Image

from interstack.tracking.events import Event

_EDGES: Final = "#2fb7c4"
"""Seen on every shade of the map."""


def similarity_figure(event: Event) -> Figure:
    """Draw layers against each other and against the teacher's.

    Args:
        event: Of the kind ``similarity``.
    """
    names = event["layers"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, values, columns in zip(
        figure.subplots(1, 2),
        (event["student"], event["teacher"]),
        (names, teacher_names(event["teacher_layers"])),
        strict=True,
    ):
        image = draw_map(axes, values, names, columns, lowest=float(np.min(values)))
        figure.colorbar(image, ax=axes, label="linear CKA", shrink=0.9)
        axes.set_ylabel("student's layer, by block and place")
    axes.set_xlabel("teacher's layer")
    return figure


def similarity_picture(event: Event) -> Image.Image:
    """Return the same as pixels."""
    buffer = io.BytesIO()
    similarity_figure(event).savefig(buffer, format="png", dpi=110)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def teacher_names(layers: Sequence[int]) -> list[str]:
    """Return what a teacher's hidden states are called."""
    return ["input" if layer == 0 else str(layer) for layer in layers]


def draw_map(
    axes: Axes,
    values: ArrayLike,
    names: Sequence[str],
    columns: Sequence[str],
    *,
    lowest: float = 0.0,
    font_size: float = 7.0,
) -> AxesImage:
    """Draw a similarity map, with lines between the student's blocks.

    Args:
        axes: Where to.
        values: Similarities, (1 + layers, columns); the first row is the encoder's input.
        names: Of the student's layers, bottom first, by block and place.
        columns: The same names, if they are the columns as well; else the teacher's.
        lowest: Similarity that is the darkest: layers are so alike that blocks would not show if
            that were 0.
        font_size: Of the layers' names.

    Returns:
        The image, for a colour bar.
    """
    image = axes.imshow(values, vmin=lowest, vmax=1, cmap="magma", origin="lower", aspect="auto")
    across = ["input", *names] if columns is names else columns
    axes.set_xticks(range(len(across)), across, rotation=90, fontsize=font_size)
    axes.set_yticks(range(len(names) + 1), ["input", *names], fontsize=font_size)
    for edge in _block_edges(names):
        axes.axhline(edge, color=_EDGES, linewidth=1.2)
        if columns is names:
            axes.axvline(edge, color=_EDGES, linewidth=1.2)
    return image


def _block_edges(names: Sequence[str]) -> list[float]:
    """Return where a layer of one block lies above another's, or above the input.

    In a stack that has not grown each layer is a block; lines around all of them would say nothing.
    """
    blocks = ["input", *(name.partition(".")[0] for name in names)]
    if len(set(blocks)) == len(blocks):
        return []
    return [place - 0.5 for place in range(1, len(blocks)) if blocks[place] != blocks[place - 1]]

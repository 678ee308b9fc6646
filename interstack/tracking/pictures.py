"""Pictures for loggers, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from interstack.tracking.layer_similarity import LayerSimilarity


def similarity_figure(maps: LayerSimilarity, names: Sequence[str]) -> Figure:
    """Draw layers against each other and against the teacher's.

    Args:
        maps: The similarities.
        names: Of the student's layers, bottom first, by block and place.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = ["input", *names]
    teacher = ["input" if layer == 0 else str(layer) for layer in maps.teacher_layers]
    _draw(left, maps.student, labels, labels, "student")
    _draw(right, maps.teacher, labels, teacher, "teacher's layer")
    figure.colorbar(right.images[0], ax=[left, right], label="linear CKA", shrink=0.9)
    return figure


def similarity_picture(maps: LayerSimilarity, names: Sequence[str]) -> Image.Image:
    """Return the same as pixels."""
    buffer = io.BytesIO()
    similarity_figure(maps, names).savefig(buffer, format="png", dpi=110)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def _draw(axes: Axes, values: Tensor, rows: Sequence[str], columns: Sequence[str], of: str) -> None:
    axes.imshow(values.numpy(), vmin=0, vmax=1, cmap="magma", origin="lower", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xlabel(of)
    axes.set_ylabel("student's layer, by block and place")

"""The report's figures as SVG that takes its ink from the page, so that it suits light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from interstack.report.comparison import Group
from interstack.report.story import Story
from interstack.tracking.events import Event
from interstack.tracking.lineage import block_names
from interstack.tracking.points import AUDIO_HOURS, WALL_CLOCK
from interstack.tracking.step_clock import PARTS

_INK: Final = "#010203"
"""Stands for the page's own text colour."""
COLOURS: Final = ("#4c78d0", "#d9822b", "#3a9d6e", "#c2477f", "#8a63c9", "#6d7a83")
"""Told apart by most colour-blind readers, and legible on white and on near-black."""
_PART_COLOURS: Final = dict(zip(PARTS, COLOURS, strict=True))
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "legend.frameon": False,
}
_AXES: Final = (
    ("step", "optimizer steps", 1.0),
    (AUDIO_HOURS, "hours of audio", 1.0),
    (WALL_CLOCK, "minutes of training", 60.0),
)
Line = NDArray[np.float64]


def loss_figures(groups: Sequence[Group]) -> list[str]:
    """Draw losses against steps, audio and wall-clock, one each; growths as vertical lines."""
    with mpl.rc_context(_STYLE):
        return [_loss_figure(groups, key, label, scale) for key, label, scale in _AXES]


def _loss_figure(groups: Sequence[Group], key: str, label: str, scale: float) -> str:
    figure = Figure(figsize=(4.2, 3.3), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(groups):
        _draw_group(axes, group, COLOURS[number % len(COLOURS)], key, scale)
    axes.set_xlabel(label)
    axes.set_ylabel("loss")
    axes.legend(fontsize=8)
    return _svg(figure)


def split_figure(story: Story) -> str:
    """Draw what an average step of each stage is made of."""
    with mpl.rc_context(_STYLE):
        depths = sorted({int(point["train/depth"]) for point in story.points})
        figure = Figure(figsize=(7, 0.9 + 0.42 * len(depths)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(depths))
        for part in PARTS:
            means = np.array([_mean(story, depth, f"split/{part}") for depth in depths])
            axes.barh(
                [f"{depth} layers" for depth in depths],
                1000 * means,
                left=left,
                color=_PART_COLOURS[part],
                label=part.replace("_", " "),
                height=0.62,
            )
            left = left + 1000 * means
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds a step")
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper center", ncols=len(PARTS), fontsize=8)
        return _svg(figure)


def similarity_figures(story: Story) -> list[str]:
    """Draw layers' similarity at each stage's end: to each other above, to the teacher below."""
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        return [_similarity_figure(story, each) for each in story.similarities]


def _similarity_figure(story: Story, maps: Event) -> str:
    names = ["input", *block_names(_lineage_at(story, int(maps["depth"])))]
    teacher = ["input" if layer == 0 else str(layer) for layer in maps["teacher_layers"]]
    figure = Figure(figsize=(3.4, 5.4), layout="constrained")
    panels = figure.subplots(2, 1)
    for axes, values, columns, of in (
        (panels[0], maps["student"], names, "student"),
        (panels[1], maps["teacher"], teacher, "teacher"),
    ):
        image = axes.imshow(values, vmin=0, vmax=1, cmap="magma", origin="lower", aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.set_ylabel(f"student × {of}")
    panels[0].set_title(f"{maps['depth']} layers", fontsize=9)
    figure.colorbar(image, ax=panels, label="linear CKA", shrink=0.5)
    return _svg(figure)


def _draw_group(axes: Axes, group: Group, colour: str, key: str, scale: float) -> None:
    """Draw a recipe's runs: their mean with a band, and the first one's training loss, thin."""
    first = group.stories[0]
    places, low, mean, high = _band(group, key, scale)
    judged = len(places) > 0
    axes.plot(
        [scale * float(point[key]) for point in first.points],
        [float(point["train/loss"]) for point in first.points],
        color=colour,
        linewidth=0.7,
        alpha=0.6,
        label=None if judged else group.name,
    )
    if judged:
        axes.plot(
            places,
            mean,
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=2.5,
            label=group.name,
        )
    if len(group.stories) > 1:
        axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    for growth in first.growths:
        axes.axvline(scale * float(growth[key]), color=colour, linewidth=0.9, linestyle=":")


def _band(group: Group, key: str, scale: float) -> tuple[Line, Line, Line, Line]:
    """Return places that all runs reach, and the lowest, mean and highest validation loss there."""
    lines = []
    for story in group.stories:
        losses = story.losses()
        if losses:
            places = [scale * float(event[key]) for event, _ in losses]
            lines.append((places, [loss for _, loss in losses]))
    if not lines:
        empty = np.zeros(0)
        return empty, empty, empty, empty
    end = min(places[-1] for places, _ in lines)
    common = np.array([place for place in lines[0][0] if place <= end * (1 + 1e-9)])
    values = np.array([np.interp(common, *line) for line in lines])
    return common, values.min(0), values.mean(0), values.max(0)


def _mean(story: Story, depth: int, key: str) -> float:
    values = [float(point[key]) for point in story.points if int(point["train/depth"]) == depth]
    return float(np.mean(values))


def _lineage_at(story: Story, depth: int) -> list[int]:
    for growth in story.growths:
        if growth["to_depth"] == depth:
            return [row["block"] - 1 for row in growth["layers"]]
    return list(range(depth))


def _svg(figure: Figure) -> str:
    """Return a figure as SVG for a page: its ink the page's, nothing behind it, no headers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(_INK, "currentColor")

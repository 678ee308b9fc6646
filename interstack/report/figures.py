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

from interstack.report.compare import Group
from interstack.report.run import Run
from interstack.tracking.events import Event
from interstack.tracking.loggers import draw_map, teacher_names
from interstack.tracking.metrics import AUDIO_HOURS, WALL_CLOCK
from interstack.tracking.step_timer import PARTS

_INK: Final = "#010203"
"""Placeholder of the page's own text colour."""
COLOURS: Final = ("#4c78d0", "#d9822b", "#3a9d6e", "#c2477f", "#8a63c9", "#6d7a83")
"""Distinct for most colour-blind readers, and legible on white and on near-black."""
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
_MAPS: Final = ("student", "teacher")
Line = NDArray[np.float64]


def loss_figures(groups: Sequence[Group]) -> list[str]:
    """Return the losses against steps, audio and wall-clock, one each; growth as vertical lines."""
    with mpl.rc_context(_STYLE):
        return [_loss_figure(groups, key, label, scale) for key, label, scale in _AXES]


def _loss_figure(groups: Sequence[Group], key: str, label: str, scale: float) -> str:
    figure = Figure(figsize=(4.2, 3.3), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(groups):
        _draw_group(axes, group, COLOURS[number % len(COLOURS)], key, scale)
    axes.set_xlabel(label)
    axes.set_ylabel("loss")
    if len(groups) > 1:
        axes.legend(fontsize=8)
    return _svg(figure)


def split_figure(run: Run) -> str:
    """Return the parts of each stage's median step, which outliers leave alone."""
    with mpl.rc_context(_STYLE):
        depths = sorted({int(point["train/depth"]) for point in run.points})
        figure = Figure(figsize=(7, 0.9 + 0.42 * len(depths)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(depths))
        for part in PARTS:
            parts = np.array([_median(run, depth, f"split/{part}") for depth in depths])
            axes.barh(
                [f"{depth} layers" for depth in depths],
                1000 * parts,
                left=left,
                color=_PART_COLOURS[part],
                label=part.replace("_", " "),
                height=0.62,
            )
            left = left + 1000 * parts
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds a step")
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper center", ncols=len(PARTS), fontsize=8)
        return _svg(figure)


def similarity_figures(run: Run) -> list[str]:
    """Return maps of layers' similarity at each stage's end: to each other, and to the teacher.

    The colours of one run's stages are of one scale, from the least alike of them all.
    """
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        lowest = [
            min((np.min(maps[kind]) for maps in run.similarities), default=0.0) for kind in _MAPS
        ]
        return [_similarity_figure(each, lowest) for each in run.similarities]


def _similarity_figure(maps: Event, lowest: Sequence[float]) -> str:
    names = maps["layers"]
    figure = Figure(figsize=(3.4, 5.6), layout="constrained")
    panels = figure.subplots(2, 1)
    columns = (names, teacher_names(maps["teacher_layers"]))
    for axes, kind, across, darkest in zip(panels, _MAPS, columns, lowest, strict=True):
        image = draw_map(axes, maps[kind], names, across, lowest=darkest, font_size=6)
        axes.set_ylabel(f"student × {kind}")
        figure.colorbar(image, ax=axes, label="linear CKA", shrink=0.8)
    panels[0].set_title(f"{maps['depth']} layers", fontsize=9)
    return _svg(figure)


def _draw_group(axes: Axes, group: Group, colour: str, key: str, scale: float) -> None:
    """Draw a recipe's runs: their mean with a band, and the first one's training loss, thin."""
    first = group.runs[0]
    abscissae, low, mean, high = _band(group, key, scale)
    validated = len(abscissae) > 0
    axes.plot(
        [scale * float(point[key]) for point in first.points],
        [float(point["train/loss"]) for point in first.points],
        color=colour,
        linewidth=0.7,
        alpha=0.6,
        label=None if validated else group.name,
    )
    if validated:
        axes.plot(
            abscissae,
            mean,
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=2.5,
            label=group.name,
        )
    if len(group.runs) > 1:
        axes.fill_between(abscissae, low, high, color=colour, alpha=0.2, linewidth=0)
    for growth in first.growths:
        _draw_growth(axes, growth, colour, scale * float(growth[key]))


def _draw_growth(axes: Axes, growth: Event, colour: str, at: float) -> None:
    """Draw a growth step: a line with the new depth, and the validation loss's jump."""
    axes.axvline(at, color=colour, linewidth=0.9, linestyle=":")
    axes.annotate(
        f"{growth['to_depth']}",
        (at, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
    )
    before, after = growth["validation_before"], growth["validation_after"]
    if before is not None and after is not None:
        axes.plot([at, at], [before, after], color=colour, linewidth=1.8)
        axes.plot([at], [after], color=colour, marker="^", markersize=5)


def _band(group: Group, key: str, scale: float) -> tuple[Line, Line, Line, Line]:
    """Return abscissae that all runs reach, and lowest, mean and highest validation loss there."""
    lines = []
    for run in group.runs:
        losses = run.losses()
        if losses:
            abscissae = [scale * float(event[key]) for event, _ in losses]
            lines.append((abscissae, [loss for _, loss in losses]))
    if not lines:
        empty = np.zeros(0)
        return empty, empty, empty, empty
    end = min(abscissae[-1] for abscissae, _ in lines)
    common = np.array([each for each in lines[0][0] if each <= end * (1 + 1e-9)])
    values = np.array([np.interp(common, *line) for line in lines])
    return common, values.min(0), values.mean(0), values.max(0)


def _median(run: Run, depth: int, key: str) -> float:
    values = [float(point[key]) for point in run.points if int(point["train/depth"]) == depth]
    return float(np.median(values))


def _svg(figure: Figure) -> str:
    """Return a figure as SVG for a page: its ink the page's, nothing behind it, no headers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(_INK, "currentColor")

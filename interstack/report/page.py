"""The report's page: everything in one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from interstack.report.comparison import Group, common_loss, group_by_recipe, reach
from interstack.report.figures import (
    COLOURS,
    loss_figures,
    similarity_figures,
    split_figure,
)
from interstack.report.story import Story
from interstack.tracking.points import AUDIO_HOURS, PETAFLOPS, WALL_CLOCK


@dataclass(frozen=True)
class _Column:
    """A stage's stack, drawn as blocks.

    Attributes:
        title: Its depth.
        layers: Top first: name, colour, whether it is a clone, whether it is tied to the teacher.
    """

    title: str
    layers: Sequence[tuple[str, str, bool, bool]]


def render(stories: Sequence[Story]) -> str:
    """Return the page as HTML.

    Args:
        stories: The runs, in the order in which they are shown.
    """
    groups = group_by_recipe(stories)
    loss = common_loss(groups)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        (files(__package__) / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=", ".join(group.name for group in groups),
        losses=[Markup(each) for each in loss_figures(groups)],
        common_loss=None if loss is None else f"{loss:.4f}",
        reached=_reached_rows(groups, loss),
        runs=[_run(story) for story in stories],
    )


def _run(story: Story) -> dict[str, Any]:
    last = story.points[-1]
    return {
        "name": story.name,
        "status": story.status,
        "seed": story.seed,
        "step": f"{last['step']:,}",
        "hours": f"{last[AUDIO_HOURS]:.2f}",
        "clock": _clock(3600 * last[WALL_CLOCK]),
        "pflops": f"{last[PETAFLOPS]:.3g}",
        "speed": f"{last['speed/audio_seconds_per_second']:.0f}",
        "memory": f"{last['memory/peak_mebibytes']:,.0f}",
        "stages": [_stage_row(stage) for stage in story.stages],
        "columns": _columns(story),
        "split": Markup(split_figure(story)),
        "similarity": [Markup(each) for each in similarity_figures(story)],
    }


def _stage_row(stage: Any) -> list[str]:  # noqa: ANN401, an event
    recovered = stage["recovered_after_steps"]
    before, peak = stage["loss_before_growth"], stage["loss_peak"]
    spike = "" if before is None or peak is None else f"{100 * (peak / before - 1):+.1f} %"
    return [
        str(stage["stage"]),
        str(stage["depth"]),
        f"{stage['num_parameters'] / 1e6:.2f} M",
        f"{stage['steps']:,}",
        f"{stage['audio_seconds'] / 3600:.2f}",
        _clock(stage["training_seconds"]),
        _loss(stage["validation_before"]),
        _loss(stage["validation_after"]),
        spike,
        "" if before is None else ("not yet" if recovered is None else f"{recovered} steps"),
    ]


def _columns(story: Story) -> list[_Column]:
    """Return the stacks from the first stage on, layers coloured by block."""
    if not story.growths:
        return []
    first = story.growths[0]
    depth = first["from_depth"]
    start = [(f"{layer + 1}.1", _colour(layer), False, False) for layer in range(depth)]
    columns = [_Column(str(depth), start[::-1])]
    for growth in story.growths:
        layers = [
            (row["name"], _colour(row["block"] - 1), row["kind"] == "clone", row["tap"])
            for row in growth["layers"]
        ]
        columns.append(_Column(str(growth["to_depth"]), layers[::-1]))
    return columns


def _reached_rows(groups: Sequence[Group], loss: float | None) -> list[tuple[str, str, str]]:
    """Return rows of who reaches the common loss when; nothing to compare in a single run."""
    if loss is None or len(groups) < 2:
        return []
    rows = []
    for each in reach(groups, loss):
        mean = sum(each.seconds) / len(each.seconds)
        spread = (
            f" ({_clock(min(each.seconds))}–{_clock(max(each.seconds))})"
            if len(each.seconds) > 1
            else ""
        )
        speed_up = "" if each.speed_up is None else f"{each.speed_up:.2f}×"
        rows.append((each.group.name, f"{_clock(mean)}{spread}", speed_up))
    return rows


def _colour(block: int) -> str:
    return COLOURS[block % len(COLOURS)]


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}"


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"

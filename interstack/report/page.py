"""The report's page: everything in one file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean
from typing import Any, Final

from jinja2 import Environment
from markupsafe import Markup

from interstack.report.compare import (
    Group,
    GrowthCost,
    SpeedupEstimate,
    common_loss,
    estimate_speedup,
    group_by_recipe,
    growth_costs,
    times_to_loss,
)
from interstack.report.figures import (
    COLOURS,
    loss_figures,
    similarity_figures,
    split_figure,
)
from interstack.report.run import Run
from interstack.tracking.metrics import AUDIO_HOURS, PETAFLOPS, WALL_CLOCK
from interstack.utils.units import format_duration

_HOUR: Final = 3600.0


@dataclass(frozen=True)
class _Column:
    """The layers of a stage, drawn by block.

    Attributes:
        title: The depth.
        layers: Top first: name, colour, whether it is a clone, whether it is tied to the teacher.
    """

    title: str
    layers: Sequence[tuple[str, str, bool, bool]]


def render(runs: Sequence[Run], loss: float | None = None) -> str:
    """Return the page as HTML.

    Args:
        runs: The runs, in the order in which they are shown.
        loss: Validation loss that runs are compared at; the lowest that all reach if None.
    """
    groups = group_by_recipe(runs)
    wanted = common_loss(groups) if loss is None else loss
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        (files(__package__) / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=", ".join(group.name for group in groups),
        losses=[Markup(each) for each in loss_figures(groups)],
        wanted_loss=None if wanted is None else f"{wanted:.4f}",
        is_common=loss is None,
        compared=_compared_rows(groups, wanted),
        runs=[_run(run) for run in runs],
    )


def _run(run: Run) -> dict[str, Any]:
    last = run.points[-1]
    return {
        "name": run.name,
        "status": _status(run),
        "seed": run.seed,
        "step": f"{last['step']:,}",
        "hours": f"{last[AUDIO_HOURS]:.2f}",
        "clock": _clock(_HOUR * last[WALL_CLOCK]),
        "pflops": f"{last[PETAFLOPS]:.3g}",
        "speed": f"{last['speed/audio_seconds_per_second']:.0f}",
        "memory": f"{last['memory/peak_mebibytes']:,.0f}",
        "cost": _cost(growth_costs(run)),
        "estimate": _estimate(estimate_speedup(run)),
        "stages": [_stage_row(stage) for stage in run.stages],
        "columns": _columns(run),
        "split": Markup(split_figure(run)),
        "similarity": [Markup(each) for each in similarity_figures(run)],
    }


def _status(run: Run) -> str:
    if run.status in ("finished", "interrupted"):
        return run.status
    if run.status == "ended_early":
        return "ended early" if run.early_end is None else f"ended early, {run.early_end}"
    return f"{run.status}, or died: its last record is of {run.last_record:%Y-%m-%d %H:%M} UTC"


def _cost(costs: Sequence[GrowthCost]) -> str:
    """Return in words what growth steps did to the losses."""
    words = []
    for cost in costs:
        jump = "" if cost.jump is None else f"validation loss {100 * cost.jump:+.1f} %, "
        steps = cost.recovered_after
        back = "not back yet" if steps is None else f"back after {steps} steps"
        words.append(f"{cost.depth} layers: {jump}training loss {back}")
    return "; ".join(words)


def _estimate(found: SpeedupEstimate | None) -> str:
    """Return the estimate in words."""
    if found is None:
        return ""
    return (
        f"about {found.speedup:.2f}×: at the pace of its {found.depth} layers its {found.steps:,} "
        f"steps would have taken {_clock(found.full_depth_seconds)} instead of "
        f"{_clock(found.seconds)}"
    )


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


def _columns(run: Run) -> list[_Column]:
    """Return the stacks from the first stage on, layers coloured by block."""
    if not run.growths:
        return []
    first = run.growths[0]
    # the last layer of a block is tied to the teacher, before a growth step as after it
    taps = {row["block"] for row in first["layers"] if row["tap"]}
    start = [
        (f"{block}.1", _colour(block - 1), False, block in taps)
        for block in range(1, first["from_depth"] + 1)
    ]
    columns = [_Column(str(first["from_depth"]), start[::-1])]
    for growth in run.growths:
        layers = [
            (row["name"], _colour(row["block"] - 1), row["kind"] == "clone", row["tap"])
            for row in growth["layers"]
        ]
        columns.append(_Column(str(growth["to_depth"]), layers[::-1]))
    return columns


def _compared_rows(groups: Sequence[Group], loss: float | None) -> list[list[tuple[str, str]]]:
    """Return a row of means and their spreads for each group; a single run has none."""
    if len(groups) < 2 and all(len(group.runs) < 2 for group in groups):
        return []
    reached = [None] * len(groups) if loss is None else times_to_loss(groups, loss)
    rows = []
    for group, each in zip(groups, reached, strict=True):
        lasts = [run.points[-1] for run in group.runs]
        ends = [found[-1][1] for run in group.runs if (found := run.losses())]
        rows.append(
            [
                (group.name, ""),
                _spread(ends, _loss),
                _spread([last[PETAFLOPS] for last in lasts], lambda value: f"{value:.3g}"),
                _spread([_HOUR * last[WALL_CLOCK] for last in lasts], _clock),
                _spread(each.seconds if each else (), _clock),
                _spread(each.speedups if each else (), lambda value: f"{value:.2f}×"),
            ]
        )
    return rows


def _spread(values: Sequence[float], write: Callable[[float], str]) -> tuple[str, str]:
    """Return a mean, and the lowest and highest of several values; a dash for none."""
    if not values:
        return "–", ""
    mean, lowest, highest = map(write, (fmean(values), min(values), max(values)))
    return mean, f"{lowest}–{highest}" if highest != lowest else ""


def _colour(block: int) -> str:
    return COLOURS[block % len(COLOURS)]


def _clock(seconds: float) -> str:
    return format_duration(seconds) if math.isfinite(seconds) else "not reached"


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"

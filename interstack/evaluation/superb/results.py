"""Results of finished jobs: means over variants and seeds, the table, the SUPERB score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

import yaml
from rich.table import Table
from rich.text import Text

from interstack.evaluation.superb.tasks import TASKS, Metric, Task
from interstack.utils.atomic import write_whole
from interstack.utils.console import make_table

TABLE_FILE: Final = "results.jsonl"
Result = Mapping[str, Any]
"""Content of a job's ``result.json``."""


@dataclass(frozen=True)
class Figure:
    """A metric of an upstream.

    Attributes:
        mean: Over seeds, of means over a task's variants.
        spread: Standard deviation over seeds; None for a single one.
        num_seeds: Seeds.
        complete: Whether every seed has all the task's variants.
    """

    mean: float
    spread: float | None
    num_seeds: int
    complete: bool


def collect(results: Iterable[Result]) -> dict[str, dict[str, Figure]]:
    """Return figures by upstream and metric."""
    values: dict[str, dict[str, dict[int, list[float]]]] = {}
    for result in results:
        of_upstream = values.setdefault(str(result["upstream"]), {})
        for key, value in result["metrics"].items():
            of_upstream.setdefault(key, {}).setdefault(result["seed"], []).append(value)
    return {
        upstream: {key: _figure(key, of_seeds) for key, of_seeds in metrics.items()}
        for upstream, metrics in values.items()
    }


def write_results(output: Path, results: Sequence[Result]) -> None:
    """Write the results of jobs atomically, one a line."""
    lines = "".join(json.dumps(result) + "\n" for result in results)
    write_whole(output / TABLE_FILE, lines.encode())


def superb_score(figures: Mapping[str, float]) -> float | None:
    """Return the leaderboard's score of tasks: 0 is FBANK, 1000 HuBERT Large.

    The mean over tasks of the mean over a task's metrics of
    1000 (value − FBANK) / (HuBERT Large − FBANK); superbbenchmark.org, `overall_metrics.js` in
    github.com/superbbenchmark/website-react. None where a reference or a metric of a task is
    missing.

    Args:
        figures: Values by metric.
    """
    references, scores = published()["references"], []
    for task in TASKS.values():
        keys = [metric.key for metric in task.metrics]
        if not keys or not set(keys) & set(figures):
            continue
        if not set(keys) <= set(figures) & set(references):
            return None
        scores.append(
            fmean(
                1000 * (figures[key] - floor) / (ceiling - floor)
                for key in keys
                for floor, ceiling in [references[key]]
            )
        )
    return fmean(scores) if scores else None


@cache
def published() -> dict[str, Any]:
    """Return the published rows and the references of the score, with their sources."""
    text = (files(__package__) / "published.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def results_table(found: Mapping[str, Mapping[str, Figure]], tasks: Sequence[Task]) -> Table:
    """Return a table of upstreams and the published rows that have any of the tasks.

    Args:
        found: Figures by upstream and metric; see `collect`.
        tasks: Tasks of the table.
    """
    metrics = [metric for task in tasks for metric in task.metrics]
    notes = [f"{task.name.upper()}: {task.note}" for task in tasks if task.note and task.metrics]
    caption = "; ".join(
        ["percentages, mean ± standard deviation over seeds", *notes, _about_score(tasks)]
    )
    labels = [f"{metric.label} {'↑' if metric.higher_better else '↓'}" for metric in metrics]
    table = make_table(("model", *labels, "score"), title="SUPERB", caption=caption)
    table.add_column("source", overflow="fold")
    for name, figures in found.items():
        cells = [_cell(figures.get(metric.key)) for metric in metrics]
        means = {key: figure.mean for key, figure in figures.items() if figure.complete}
        table.add_row(Text(name), *cells, _score(means, metrics), "here", style="bold")
    table.add_section()
    for row in published()["rows"]:
        if any(metric.key in row for metric in metrics):
            cells = [f"{row[metric.key]:.2f}" if metric.key in row else "" for metric in metrics]
            table.add_row(row["model"], *cells, _score(row, metrics), row["source"])
    return table


def _about_score(tasks: Sequence[Task]) -> str:
    named = ", ".join(task.name.upper() for task in tasks if task.metrics)
    return f"score: of {named}, 0 is FBANK's and 1000 HuBERT Large's"


def _score(values: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    """Return the score as text; empty unless all of the table's metrics are there."""
    of_table = {metric.key: float(values[metric.key]) for metric in metrics if metric.key in values}
    score = superb_score(of_table) if len(of_table) == len(metrics) else None
    return "" if score is None else f"{score:.0f}"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    spread = "" if figure.spread is None else f" ± {figure.spread:.2f}"
    return f"{figure.mean:.2f}{spread}{'' if figure.complete else ' (in part)'}"


def _figure(key: str, of_seeds: Mapping[int, Sequence[float]]) -> Figure:
    task = TASKS[key.partition("_")[0]]
    means = [fmean(values) for values in of_seeds.values()]
    complete = all(len(values) == len(task.variants) for values in of_seeds.values())
    return Figure(fmean(means), stdev(means) if len(means) > 1 else None, len(means), complete)

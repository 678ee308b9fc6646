"""Results of a sweep: a row for each arm, Welch's test against one of them, CSV files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from rich.table import Table

from interstack.errors import ConfigurationError
from interstack.report.run import Run
from interstack.sweep.study import PlannedRun
from interstack.tracking.metrics import WALL_CLOCK
from interstack.utils.atomic import write_whole
from interstack.utils.console import make_table

RUNS_FILE: Final = "runs.csv"
TABLE_FILE: Final = "table.csv"
VALIDATION_LOSS: Final = "val/loss"


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        run: The run.
        metric: Its last value of the compared metric; None where it has none.
        step: Optimizer steps.
        hours: Of training.
    """

    run: PlannedRun
    metric: float | None
    step: int
    hours: float


@dataclass(frozen=True)
class Row:
    """A group of runs that differ by their seeds alone.

    Attributes:
        group: Arm and values.
        num_runs: Runs with a value.
        mean: Of their values; None without one.
        spread: Standard deviation of the sample; None below two runs.
        difference: Of the mean and the baseline's; None for the baseline itself.
        p_value: Of Welch's two-sided test against the baseline; None where there is none.
        hours: Mean hours of training.
    """

    group: str
    num_runs: int
    mean: float | None
    spread: float | None
    difference: float | None
    p_value: float | None
    hours: float | None


def run_result(run: PlannedRun, record: Run, metric: str) -> RunResult:
    """Return the result of a run, from its own records.

    Args:
        run: The run.
        record: Its records.
        metric: Name of a validation's metric, such as ``val/loss``.

    Raises:
        ConfigurationError: If its validations have other metrics.
    """
    if metric == VALIDATION_LOSS:
        values = [loss for _, loss in record.losses()]
    else:
        names = {name for event in record.validations for name in event["losses"]}
        if names and metric not in names:
            raise ConfigurationError(
                f"--metric is {metric}, which the validations of {run.name} have not: give "
                f"{' or '.join(sorted(names))}"
            )
        values = [
            float(event["losses"][metric])
            for event in record.validations
            if metric in event["losses"]
        ]
    last = record.points[-1]
    return RunResult(
        run, values[-1] if values else None, int(last["step"]), float(last[WALL_CLOCK])
    )


def welch_p_value(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the p-value of Welch's two-sided t-test, which lets variances differ.

    Args:
        one: Values of one arm.
        other: Values of another one.

    Returns:
        The p-value; None where an arm has fewer than two finite values, or neither varies.

    Example:
        >>> round(welch_p_value([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]), 3)
        0.218
    """
    from scipy.stats import ttest_ind

    finite = all(map(math.isfinite, [*one, *other]))
    if min(len(one), len(other)) < 2 or not finite or stdev(one) == stdev(other) == 0:
        return None
    return float(ttest_ind(one, other, equal_var=False).pvalue)


def rows_of(groups: Mapping[str, str | None], results: Sequence[RunResult]) -> list[Row]:
    """Return a row for each group of runs.

    Args:
        groups: For each group the one that it is tested against, which may be itself or None.
        results: Of finished runs.
    """
    values: dict[str, list[float]] = {group: [] for group in groups}
    hours: dict[str, list[float]] = {group: [] for group in groups}
    for result in results:
        if result.metric is not None:
            values[result.run.group].append(result.metric)
        hours[result.run.group].append(result.hours)
    return [_row(group, base, values, hours[group]) for group, base in groups.items()]


def _row(
    group: str, base: str | None, values: Mapping[str, Sequence[float]], hours: Sequence[float]
) -> Row:
    own = values[group]
    others = values[base] if base is not None and base != group else []
    return Row(
        group,
        len(own),
        fmean(own) if own else None,
        stdev(own) if len(own) > 1 else None,
        fmean(own) - fmean(others) if own and others else None,
        welch_p_value(own, others) if others else None,
        fmean(hours) if hours else None,
    )


def results_table(rows: Sequence[Row], metric: str, baseline: str | None) -> Table:
    """Return the rows as a table.

    Args:
        rows: In order.
        metric: The compared metric.
        baseline: The arm that the others are tested against.
    """
    caption = f"{metric} at the end of a run, mean ± standard deviation over seeds"
    if baseline is not None:
        caption += f"; p: Welch's two-sided t-test against {baseline}"
    compared = () if baseline is None else ("difference", "p")
    table = make_table(("arm", "n", metric, *compared, "hours"), title="sweep", caption=caption)
    for row in rows:
        spread = "" if row.spread is None else f" ± {row.spread:.4f}"
        tested = (_format(row.difference, "+.4f"), _format(row.p_value, ".2g"))
        table.add_row(
            row.group,
            str(row.num_runs),
            _format(row.mean, ".4f") + spread,
            *(() if baseline is None else tested),
            _format(row.hours, ".3f"),
        )
    return table


def write_results(
    output: Path, rows: Sequence[Row], results: Sequence[RunResult], metric: str
) -> None:
    """Write a row for each group and a row for each run as CSV, atomically.

    Raises:
        OSError: If that can't be done.
    """
    names = ["arm", "n", "mean", "standard_deviation", "difference", "p", "hours"]
    write_whole(output / TABLE_FILE, _csv(names, [list(vars(row).values()) for row in rows]))
    names = ["run", "arm", "group", "seed", metric, "step", "hours"]
    lines = [
        [run.name, run.arm, run.group, run.seed, each.metric, each.step, each.hours]
        for each in results
        for run in [each.run]
    ]
    write_whole(output / RUNS_FILE, _csv(names, lines))


def _csv(names: Sequence[str], lines: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(lines)
    return text.getvalue().encode()


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

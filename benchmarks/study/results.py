"""Tables and figures of the study, from its records.

    python -m benchmarks.study.results [--output benchmarks/study]

Writes ``results.md`` and ``figures/*.png``. Losses are those against the live teacher at the end
of a run; ± is the standard deviation over seeds, p Welch's two-sided test against full depth.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from benchmarks.study.records import RECORDS, RunRecord, read_all
from interstack.sweep.results import welch_p_value
from interstack.utils.atomic import write_whole

OUTPUT: Final = Path(__file__).parent
BASELINE: Final = "full"
SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "A. Operators and schedules": ("a_operators", "a_seeds"),
    "A. Policies at a growth step": ("a_policies",),
    "A. With Whisper base as the teacher": ("a_whisper",),
    "B. Learning rates at full depth": ("b_rates",),
}
"""Title of a table, and the study files whose runs it holds."""

Groups = Mapping[str, Sequence[RunRecord]]


def groups_of(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return records by group, by the mean loss of each."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return dict(sorted(groups.items(), key=lambda each: _mean_loss(each[1])))


def final_table(groups: Groups, baseline: Sequence[RunRecord]) -> list[str]:
    """Return a Markdown table of what runs have reached, a row a group.

    Args:
        groups: Runs by group.
        baseline: What the others are tested against; may be empty.
    """
    taps = sorted(
        {name for runs in groups.values() for run in runs for name in run.judged} - {"loss"},
        key=lambda name: int(name.rpartition("_")[2]),
    )
    columns: dict[str, Callable[[RunRecord], float]] = {
        name.replace("loss_tap_", "tap "): _judged(name) for name in ("loss", *taps)
    }
    columns["phones"] = _phones
    lines = _header(["arm", "n", *columns, "p"])
    reference = [_judged("loss")(run) for run in baseline]
    for group, runs in groups.items():
        losses = [_judged("loss")(run) for run in runs]
        p_value = None if runs == baseline else welch_p_value(losses, reference)
        cells = [_spread([value(run) for run in runs]) for value in columns.values()]
        lines.append(_row([group, str(len(runs)), *cells, _p(p_value)]))
    return lines


def growth_table(groups: Groups) -> list[str]:
    """Return a Markdown table of growth steps: the jump of both losses, steps until recovery."""
    lines = _header(["arm", "growth", "validation loss", "training loss", "steps to recover"])
    for group, runs in groups.items():
        for index in range(min(len(run.growth) for run in runs)):
            steps = [run.growth[index] for run in runs]
            depths = f"{steps[0]['from_depth']} → {steps[0]['to_depth']}"
            jumps = [
                _spread([each[after] - each[before] for each in steps if each.get(after)], "+")
                for before, after in (
                    ("validation_before", "validation_after"),
                    ("training_before", "training_peak"),
                )
            ]
            recovered = [each["recovered_after_steps"] for each in steps if "training_peak" in each]
            shown = ", ".join("not" if each is None else str(each) for each in recovered)
            lines.append(_row([group, depths, *jumps, shown]))
    return lines


def write_figure(groups: Groups, title: str, path: Path) -> None:
    """Draw validation loss against steps, a line a group, seeds as a band.

    Args:
        groups: Runs by group.
        title: Over the figure.
        path: A PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for group, runs in groups.items():
        curves = [{int(each["step"]): each["loss"] for each in run.validations} for run in runs]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        rows = [[curve[step] for curve in curves] for step in steps]
        [line] = axes.plot(steps, [fmean(row) for row in rows], marker="o", markersize=3)
        line.set_label(f"{group} ({len(runs)})")
        lowest, highest = [min(row) for row in rows], [max(row) for row in rows]
        axes.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.2)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation loss")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_results(records: Sequence[RunRecord], output: Path) -> None:
    """Write all tables and figures.

    Args:
        records: All that there are.
        output: Directory of ``results.md`` and ``figures``.
    """
    baseline = [each for each in records if each.group == BASELINE]
    lines = ["# Results of the study so far", "", "Made by `python -m benchmarks.study.results`."]
    for title, files in SECTIONS.items():
        own = [each for each in records if each.study in files]
        if not own:
            continue
        groups = groups_of(own)
        figure = Path("figures") / f"{files[0]}.png"
        write_figure(groups, title, output / figure)
        lines += ["", f"## {title}", "", *final_table(groups, baseline), ""]
        grown = {group: runs for group, runs in groups.items() if runs[0].growth}
        if grown:
            lines += [*growth_table(grown), ""]
        lines.append(f"![{title}]({figure})")
    write_whole(output / "results.md", ("\n".join(lines) + "\n").encode())


def _judged(name: str) -> Callable[[RunRecord], float]:
    return lambda run: run.judged[name]


def _phones(run: RunRecord) -> float:
    return run.phone_accuracy


def _mean_loss(runs: Sequence[RunRecord]) -> float:
    mean = fmean(run.judged["loss"] for run in runs)
    return mean if math.isfinite(mean) else math.inf


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.4f}{spread}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _header(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---", *["--:"] * (len(names) - 1)])]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the results of the records that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.study.results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    write_results(read_all(options.records), options.output)


if __name__ == "__main__":
    main()

"""Tables of docs/benchmarks.md, and the README's short one, made from the records.

    python -m benchmarks.table

Writes them between the two comments of each file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

from benchmarks.growth_event import cost_in_steps
from benchmarks.optimizers import optimizer_table
from benchmarks.options import RECORDS
from benchmarks.records import BenchRecord, Spread, read_records, record_files
from benchmarks.variants import (
    GROWTH,
    REFERENCE,
    SHARED_CACHE_FULL,
    SHARED_CACHE_GROWTH,
    SHARED_LIVE_GROWTH,
    WITHOUT_DROPOUT,
)
from interstack.utils.atomic import write_whole

_REPOSITORY: Final = Path(__file__).parents[1]
README: Final = _REPOSITORY / "README.md"
PAGE: Final = _REPOSITORY / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- benchmarks: made by `python -m benchmarks.table` -->"
END: Final = "<!-- end of benchmarks -->"
_MEBIBYTE: Final = 2**20
_FRAMES_A_SECOND: Final = 50


def main() -> None:
    """Bring page and README up to date with the records."""
    for path, made in ((PAGE, tables(RECORDS)), (README, summary(RECORDS))):
        before, rest = path.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
        write_whole(path, f"{before}{made}{after}".encode())


def tables(directory: Path) -> str:
    """Return the page's part, comments included.

    Args:
        directory: Of the records; the newest of every device and number format is shown.
    """
    newest: dict[tuple[str, str], BenchRecord] = {}
    for values in read_records(directory, "bench"):
        record = BenchRecord.from_primitives(values)
        newest[record.surroundings["device"], record.surroundings["precision"]] = record
    lines = [BEGIN, ""]
    for record in newest.values():
        lines += bench_tables(record)
    for values in read_records(directory, "quality")[-1:]:
        lines += quality_table(values)
    for values in read_records(directory, "logging")[-1:]:
        lines += logging_table(values)
    for values in read_records(directory, "optimizers")[-1:]:
        lines += optimizer_table(values)
    return "\n".join([*lines, END])


def summary(directory: Path) -> str:
    """Return the README's part, comments included.

    Args:
        directory: Of the records; the newest of a processor in float32 is shown.
    """
    benches = [
        (path, BenchRecord.from_primitives(values))
        for path, values in record_files(directory, "bench")
    ]
    path, record = [
        (path, record)
        for path, record in benches
        if record.peak_tflops is None and record.surroundings["precision"].startswith("32")
    ][-1]
    shallow, deep = record.memory
    growth_cost = max(cost_in_steps(event) for event in record.growth)
    rows = [
        ("growth", _spread(record.ratio(REFERENCE, GROWTH))),
        ("growth, shared front end", _spread(record.ratio(REFERENCE, SHARED_LIVE_GROWTH))),
        (
            "growth, shared front end, cached targets",
            _spread(record.ratio(REFERENCE, SHARED_CACHE_GROWTH)),
        ),
        (
            "growth alone, against full depth on the same cached targets (1.60× possible)",
            _spread(record.ratio(SHARED_CACHE_FULL, SHARED_CACHE_GROWTH)),
        ),
    ]
    lines = [
        "| wall-clock speedup against full depth, live teacher | median (lowest–highest) |",
        "| --- | --: |",
    ]
    lines += [f"| {what} | {figure} |" for what, figure in rows]
    memory = _sizes(shallow.training, deep.training)
    lines += [
        "",
        f"Training at {shallow.depth} layers takes {memory} of the peak memory at {deep.depth}; a "
        f"growth step costs at most {growth_cost:.2f} optimizer steps.",
    ]
    record_file = path.relative_to(_REPOSITORY) if path.is_relative_to(_REPOSITORY) else path
    lines += [f"Measured on {_where(record.surroundings)} ([record]({record_file}))."]
    return "\n".join([BEGIN, "", *lines, "", END])


def bench_tables(record: BenchRecord) -> list[str]:
    """Return a run's figures as lines of Markdown."""
    on_gpu = record.peak_tflops is not None
    unit = "audio-hours/s" if on_gpu else "audio, s/s"
    says_dropout = record.dropout(REFERENCE) is not None
    lines = [
        f"`{record.command}`, {_where(record.surroundings)}; {record.audio_seconds:g} s of audio "
        "a step; medians (lowest–highest):",
        "",
        f"| variant |{' dropout |' * says_dropout} s/step | {unit} | frames/s | TFLOP/s | "
        "against the reference |",
        f"|---|{'--:|' * says_dropout}--:|--:|--:|--:|--:|",
    ]
    for name in record.variants:
        seconds = median(record.seconds(name))
        speed = record.audio_seconds / seconds
        ratio = _spread(record.ratio(REFERENCE, name))
        dropout = f" {record.dropout(name):g} |" if says_dropout else ""
        lines.append(
            f"| {name} |{dropout} {seconds:.3g} | {speed / (3600 if on_gpu else 1):.3g} | "
            f"{_FRAMES_A_SECOND * speed:.0f} | {_operations(record, name, seconds)} | {ratio} |"
        )
    return [*lines, "", *_goals(record), ""]


def _operations(record: BenchRecord, name: str, seconds: float) -> str:
    flops = record.flops(name) / 1e12 / seconds
    if not flops:
        return "–"
    share = f" ({flops / record.peak_tflops:.0%} of peak)" if record.peak_tflops else ""
    return f"{flops:.3g}{share}"


def _goals(record: BenchRecord) -> Iterator[str]:
    """Yield what the project wants to reach, and whether it does."""
    least = [
        (SHARED_LIVE_GROWTH, REFERENCE, 1.9, "shared front end and growth, live teacher"),
        (SHARED_CACHE_GROWTH, REFERENCE, 5.5, "shared front end, cache and growth"),
        (SHARED_CACHE_GROWTH, SHARED_CACHE_FULL, 1.5, "growth alone, cache on (1.60 possible)"),
    ]
    least += [
        (fast + WITHOUT_DROPOUT, slow + WITHOUT_DROPOUT, goal, f"{words}; both without dropout")
        for fast, slow, goal, words in least
        if fast + WITHOUT_DROPOUT in record.variants
    ]
    yield "| wanted | goal | measured | |"
    yield "|---|--:|--:|---|"
    for fast, slow, goal, words in least:
        ratio = record.ratio(slow, fast)
        yield f"| {words} | ≥ {goal:g}× | {_spread(ratio)} | {_verdict(ratio.median >= goal)} |"
    for event in record.growth:
        cost = cost_in_steps(event)
        yield (
            f"| growing from {event.before} to {event.after} layers, in steps | < 2 | {cost:.2f} | "
            f"{_verdict(cost < 2)} |"
        )
    shallow, deep = record.memory
    depths = f"{shallow.depth} against {deep.depth} layers"
    share = shallow.training / deep.training
    yield (
        f"| peak memory of training, {depths} | ≤ 60 % | {_sizes(shallow.training, deep.training)} "
        f"| {_verdict(share <= 0.6)} |"
    )
    yield f"| of the whole process, {depths} | | {_sizes(shallow.total, deep.total)} | |"


def _sizes(shallow: int, deep: int) -> str:
    return f"{shallow / deep:.0%} ({shallow / _MEBIBYTE:.0f} and {deep / _MEBIBYTE:.0f} MiB)"


def quality_table(values: Mapping[str, Any]) -> list[str]:
    """Return the quality study's figures as lines of Markdown."""
    results = values["results"]
    lines = [
        f"`{values['command']}`, {_where(values['surroundings'])}; means over seeds "
        "(lowest–highest):",
        "",
        "| compared at | front end and targets | steps | validation loss | phone accuracy |",
        "|---|---|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for each in results:
        plan = each["plan"]
        groups.setdefault((plan["equal"], plan["arm"], plan["steps"]), []).append(each)
    for (equal, arm, steps), members in groups.items():
        loss = _mean([each["validation_loss"] for each in members])
        phones = _mean([each["phone_accuracy"] for each in members])
        lines.append(f"| equal {equal} | {arm} | {steps} | {loss} | {phones} |")
    return [*lines, ""]


def logging_table(values: Mapping[str, Any]) -> list[str]:
    """Return what logging takes, as lines of Markdown."""
    runs = values["runs"]
    shares = [sum(run["step_seconds"].values()) / run["training_seconds"] for run in runs]
    ends = [
        sum(run["stage_seconds"].values()) / run["stages"] * run["steps"] / run["training_seconds"]
        for run in runs
    ]
    share, end = Spread.of(shares), Spread.of(ends)
    return [
        f"`{values['command']}`, {_where(values['surroundings'])}; medians (lowest–highest):",
        "",
        "| what logging takes | goal | measured | |",
        "|---|--:|--:|---|",
        f"| of a run's steps | < 1 % | {share.median:.2%} ({share.lowest:.2%}–{share.highest:.2%}) "
        f"| {_verdict(share.median < 0.01)} |",
        f"| a stage's end, in steps | | {end.median:.1f} ({end.lowest:.1f}–{end.highest:.1f}) | |",
        "",
    ]


def _where(surroundings: Mapping[str, str]) -> str:
    """Return machine, versions and commit in words."""
    names = ("torch", "lightning", "transformers")
    versions = ", ".join(f"{name} {surroundings[name]}" for name in names)
    commit = surroundings.get("commit", "unknown")
    return (
        f"{surroundings['device']}, {surroundings['threads']} of {surroundings['cores']} cores, "
        f"precision {surroundings['precision']}, {versions}, commit {commit}"
    )


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f}× ({spread.lowest:.2f}–{spread.highest:.2f})"


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"


if __name__ == "__main__":
    main()

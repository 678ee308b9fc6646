"""The bench: that it measures what it says, not how fast anything is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.growth_event import GrowthEvent
from benchmarks.logging_cost import main as logging_cost
from benchmarks.memory import Memory
from benchmarks.optimizers import main as optimizers
from benchmarks.optimizers import optimizer_table
from benchmarks.options import MEASUREMENTS, parse
from benchmarks.records import BenchRecord, StepTimes
from benchmarks.steps import time_in_turns
from benchmarks.table import (
    PAGE,
    README,
    RECORDS,
    bench_tables,
    logging_table,
    summary,
    tables,
)
from benchmarks.variants import (
    REFERENCE,
    SHARED_CACHE_FULL,
    SHARED_CACHE_GROWTH,
    SHARED_LIVE_GROWTH,
    WITHOUT_DROPOUT,
    variants,
)
from interstack.distillation.muon import newton_schulz_flops
from tests import REPOSITORY


def record() -> BenchRecord:
    """Figures that can be checked by hand: reference 6 s and 9 s, growth 3 s, cached 1 s."""
    steps = [StepTimes({}, 12, [6.0, 9.0], 0), StepTimes({}, 12, [3.0, 3.0], 10**12)]
    steps += [StepTimes({}, 3, [1.0, 1.0], 10**12)]
    places = {
        REFERENCE: [0],
        SHARED_LIVE_GROWTH: [1],
        SHARED_CACHE_FULL: [1],
        SHARED_CACHE_GROWTH: [1, 2],
    }
    growth = [GrowthEvent(3, 6, [1.0], [3.0], [1.0])]
    memory = [Memory(3, 2**20, 2**22), Memory(12, 2**21, 2**22)]
    return BenchRecord(
        "python -m benchmarks", SURROUNDINGS, 12.0, None, steps, places, growth, memory
    )


SURROUNDINGS = dict.fromkeys(
    ("device", "cores", "threads", "precision", "torch", "lightning", "transformers"), "?"
)


def test_the_table_is_what_the_figures_say() -> None:
    """Ratios are taken repetition by repetition, a growing run's step is its stages' mean."""
    lines = "\n".join(bench_tables(record()))
    assert f"| {REFERENCE} | 7.5 | 1.6 | 80 | – | 1.00× (1.00–1.00) |" in lines
    assert f"| {SHARED_CACHE_GROWTH} | 2 | 6 | 300 | 0.5 | 3.75× (3.00–4.50) |" in lines
    assert "| ≥ 1.9× | 2.50× (2.00–3.00) | reached |" in lines
    assert "| ≥ 5.5× | 3.75× (3.00–4.50) | **missed** |" in lines
    assert "| growing from 3 to 6 layers, in steps | < 2 | 3.00 | **missed** |" in lines
    assert "| ≤ 60 % | 50% (1 and 2 MiB) | reached |" in lines


def test_dropout_is_named_and_rows_without_it_are_compared_with_each_other() -> None:
    """Records of before it was recorded are shown as they were."""
    old = record()
    assert "dropout" not in "\n".join(bench_tables(old))
    both = [replace(each, setting={"dropout": 0.1}) for each in old.steps]
    both += [
        StepTimes({"dropout": 0.0}, each.depth, [second / 2 for second in each.seconds], each.flops)
        for each in old.steps
    ]
    bare = {
        name + WITHOUT_DROPOUT: [place + 3 for place in places]
        for name, places in old.variants.items()
    }
    new = replace(old, steps=both, variants=old.variants | bare)
    lines = "\n".join(bench_tables(new))
    assert "| variant | dropout | s/step |" in lines
    assert f"| {REFERENCE} | 0.1 | 7.5 |" in lines
    assert f"| {REFERENCE}{WITHOUT_DROPOUT} | 0 | 3.75 |" in lines
    goal = "shared front end, cache and growth"
    for words in (goal, f"{goal}; both without dropout"):
        assert f"| {words} | ≥ 5.5× | 3.75× (3.00–4.50) | **missed** |" in lines


def test_records_survive_their_file() -> None:
    """What is read is what was written."""
    written = json.loads(json.dumps(record().to_primitives()))
    assert BenchRecord.from_primitives(written) == record()


def test_the_page_s_tables_are_made_from_the_records() -> None:
    """Nobody edits them by hand: `python -m benchmarks.table` writes them, and the README's."""
    assert tables(RECORDS) in PAGE.read_text(encoding="utf-8")
    assert summary(RECORDS) in README.read_text(encoding="utf-8")


def test_a_measurement_is_no_record_unless_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user's goes where git ignores it, so that the page's tables still come from the records.

    The option for it and a directory of one's own exclude each other.
    """
    assert parse([]).output == MEASUREMENTS
    ignored = (REPOSITORY / ".gitignore").read_text().split()
    assert f"/{MEASUREMENTS.relative_to(REPOSITORY).parts[0]}/" in ignored
    assert parse(["--record"]).output == RECORDS
    assert parse(["--record"]).command == parse([]).command == "python -m benchmarks"
    with pytest.raises(SystemExit):
        parse(["--record", "--output=elsewhere"])
    with pytest.raises(SystemExit):
        logging_cost(["--record", "--output=elsewhere"])
    assert capsys.readouterr().err.count("not allowed with argument") == 2


def test_steps_are_timed_in_turns_back_and_forth() -> None:
    """A machine that slows down evenly favours neither the first nor the last."""
    clock = iter(range(100))
    steps = [lambda: float(next(clock)) for _ in range(3)]
    assert time_in_turns(steps, 2, lambda _: None) == [[0.0, 5.0], [1.0, 4.0], [2.0, 3.0]]


def test_the_whole_bench_on_tiny_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every variant is there, and sharing and caching leave out what they say."""
    words = ["--quick", "--repetitions=1", "--seconds=0.5", f"--output={tmp_path}"]
    assert main(words) == 0
    (path,) = tmp_path.glob("bench-*.json")
    measured = BenchRecord.from_primitives(json.loads(path.read_text()))
    assert list(measured.variants) == [each.name for each in variants(bf16=False, compiled=False)]
    assert all(second > 0 for step in measured.steps for second in step.seconds)
    dropouts = {name: measured.dropout(name) for name in measured.variants}
    assert {name for name, each in dropouts.items() if each == 0.0} == {
        name for name in measured.variants if name.endswith(WITHOUT_DROPOUT)
    }
    assert {REFERENCE + WITHOUT_DROPOUT, SHARED_CACHE_GROWTH + WITHOUT_DROPOUT} < set(dropouts)
    flops = {name: measured.flops(name) for name in measured.variants}
    assert flops[SHARED_CACHE_GROWTH] < flops[SHARED_CACHE_FULL] < flops["shared front end"]
    assert flops["shared front end"] < flops[REFERENCE]
    assert [(event.before, event.after) for event in measured.growth] == [(3, 6), (6, 9), (9, 12)]
    assert [each.depth for each in measured.memory] == [3, 12]
    assert all(each.total > 0 for each in measured.memory)
    assert "against the reference" in capsys.readouterr().out


def test_what_logging_takes_is_told_as_a_share() -> None:
    """Of training, run by run; and the ends of stages in the steps that they last."""
    run = {"steps": 10, "stages": 2, "training_seconds": 5.0}
    runs = [
        run
        | {"step_seconds": {"log": part, "look": 0.0}, "stage_seconds": {"map": 1.0, "log": 2.0}}
        for part in (0.01, 0.04, 0.06)
    ]
    values = {"command": "?", "surroundings": SURROUNDINGS, "runs": runs}
    lines = "\n".join(logging_table(values))
    assert "| < 1 % | 0.80% (0.20%–1.20%) | reached |" in lines
    assert "in steps | | 3.0 (3.0–3.0) |" in lines


def test_optimizers_are_timed_on_the_layers_of_a_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both number formats of the iteration, whichever this machine takes; a table of all."""
    words = ["--width=32", "--layers=2", "--repetitions=2", f"--output={tmp_path}"]
    assert optimizers(words) == 0
    (path,) = tmp_path.glob("optimizers-*.json")
    measured = json.loads(path.read_text())
    matrices = 4 * newton_schulz_flops(32, 32) + 2 * newton_schulz_flops(32, 128)
    assert measured["gigaflops"] == pytest.approx(2e-9 * matrices)
    assert len(measured["seconds"]) == 4
    assert all(len(each) == 2 and min(each) > 0 for each in measured["seconds"].values())
    printed = capsys.readouterr().out
    assert "\n".join(optimizer_table(measured)) in printed
    assert all(f"| {name} | " in printed for name in measured["seconds"])
    with pytest.raises(SystemExit):
        optimizers(["--width=30"])
    assert "--width 30 has to be a multiple of 16" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cost_of_logging_is_measured(tmp_path: Path) -> None:
    """On the embedded default, four stages of a step or two; nothing is counted twice."""
    words = ["--repetitions=1", "--steps=6", f"--output={tmp_path}"]
    assert logging_cost(words) == 0
    (path,) = tmp_path.glob("logging-*.json")
    (run,) = json.loads(path.read_text())["runs"]
    assert (run["steps"], run["stages"]) == (6, 4)
    assert 0 < sum(run["step_seconds"].values()) < run["training_seconds"]
    assert run["stage_seconds"].keys() >= {"Dashboard.on_growth_start", "Dashboard.on_train_end"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "--record"], "--quick says nothing about speed"),
        (["--repetitions=0"], "--repetitions 0"),
        (["--seconds=0"], "--seconds 0"),
        (["--peak-tflops=-1"], "--peak-tflops -1"),
    ],
)
def test_what_cant_be_measured_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one line and status 2."""
    assert main(words) == 2
    assert message in capsys.readouterr().err

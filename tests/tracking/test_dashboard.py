"""What a run tells of itself: to every logger, and to its own file."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from interstack.distillation.module import Distillation
from interstack.growth.operators import get_operator, plan_growth
from interstack.tracking.events import read_events
from interstack.tracking.lineage import layer_rows
from interstack.tracking.loggers import similarity_figure
from interstack.tracking.metrics import AXES, POINT_METRICS, RunMeters, Totals
from interstack.tracking.step_timer import PARTS
from tests.target_cache.cached_runs import cache, fit, stopping_at
from tests.tracking.logged_runs import LAYERS, LONG, SCALARS, of_kind
from tests.tracking.offline_wandb import Offline

RECOVERING = ("growth", "recovery")
BLOCKS_AND_PLACES = ("1_place_1", "1_place_2", "2_place_1", "2_place_2")


def test_points_hold_everything_that_is_promised(logged_run: Path) -> None:
    """Twelve of them, on rising axes, the parts of a step within it."""
    points = of_kind(logged_run, "point")
    assert [point["step"] for point in points] == list(range(2, 25, 2))
    for before, after in pairwise(points):
        assert all(after[axis] > before[axis] for axis in AXES)
    for point in points:
        assert point.keys() >= {*POINT_METRICS, "train/loss", "train/loss_tap_2", "train/depth"}
        parts = [point[f"split/{part}"] for part in PARTS]
        assert min(parts) >= 0
        assert point["train/grad_norm"] > 0
        assert point["memory/peak_mebibytes"] > 10
        assert 0 <= point["data/padding"] < 1
    assert [point["train/stage"] for point in points] == [1.0] * 6 + [2.0] * 6

    # of the same audio a deeper student costs more arithmetic
    def cost(first: dict[str, Any], last: dict[str, Any]) -> float:
        flops, hours = (last[axis] - first[axis] for axis in (AXES[2], AXES[0]))
        return float(flops / hours)

    assert cost(points[6], points[11]) > 1.02 * cost(points[0], points[5])


def test_the_axes_are_the_sums_of_the_stages(logged_run: Path) -> None:
    """One count of audio and of time, whichever file tells it; without validation."""
    stages = json.loads((logged_run / "stages.json").read_text())["stages"]
    logged = of_kind(logged_run, "stage")
    for number, event in enumerate(logged, start=1):
        for axis, name in zip(AXES, ("audio_seconds", "training_seconds"), strict=False):
            total = sum(stage[name] for stage in stages[:number])
            assert 3600 * event[axis] == pytest.approx(total)
    assert all(stage["padded_seconds"] >= stage["audio_seconds"] > 0 for stage in stages)


def test_a_growth_step_is_logged_with_its_lineage_and_its_losses(logged_run: Path) -> None:
    """The validation losses are those of the table of stages."""
    (growth,) = of_kind(logged_run, "growth")
    stages = json.loads((logged_run / "stages.json").read_text())["stages"]
    assert (growth["from_depth"], growth["to_depth"], growth["step"]) == (2, 4, 12)
    assert growth["validation_before"] == stages[0]["validation_loss_after"]
    assert growth["validation_after"] == stages[1]["validation_loss_before"]
    assert [row["name"] for row in growth["layers"]] == ["1.1", "1.2", "2.1", "2.2"]
    assert [row["kind"] for row in growth["layers"]] == ["original", "clone"] * 2
    assert [row["parent"] for row in growth["layers"]] == [1, 1, 2, 2]
    assert [row["tap"] for row in growth["layers"]] == [False, True, False, True]


def test_every_stage_ends_with_its_summary_and_its_similarity(logged_run: Path) -> None:
    """Layers with themselves are alike; the teacher's are there up to its deepest tap."""
    assert [stage["depth"] for stage in of_kind(logged_run, "stage")] == [2, 4]
    maps = of_kind(logged_run, "similarity")
    assert [each["depth"] for each in maps] == [2, 4]
    for each in maps:
        student = torch.tensor(each["student"])
        assert student.shape == (each["depth"] + 1,) * 2
        torch.testing.assert_close(student.diagonal(), torch.ones(each["depth"] + 1))
        torch.testing.assert_close(student, student.T, rtol=0, atol=2e-4)
        assert each["teacher_layers"] == [0, 1, 2, 3, 4]
        assert torch.tensor(each["teacher"]).shape == (each["depth"] + 1, 5)


def test_the_metrics_file_has_the_same_points(logged_run: Path) -> None:
    """Row by row what the events say."""
    with (logged_run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    points = of_kind(logged_run, "point")
    assert len(rows) == len(points)
    for row, point in zip(rows, points, strict=True):
        assert int(row["step"]) == point["step"] - 1  # Lightning counts from 0
        for name in (*AXES, *POINT_METRICS, "train/loss"):
            assert float(row[name]) == pytest.approx(point[name], rel=1e-5, abs=1e-12)


def test_whatever_is_logged_shares_its_row_with_the_axes(logged_run: Path) -> None:
    """W&B draws a metric against an axis only where both are in one row; losses and growths too."""
    with (logged_run / "metrics.csv").open() as file:
        in_file = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    for rows in (Offline(logged_run).rows, in_file):
        logged = [row for row in rows if any(key in row for key in SCALARS)]
        assert sum("train/loss" in row for row in logged) == 12
        assert sum("val/loss" in row for row in logged) == 1
        assert sum("growth/validation_after" in row for row in logged) == 1
        assert sum("growth/recovered_after_steps" in row for row in logged) == 1
        for row in logged:
            assert row.keys() >= set(AXES), row


def test_gradient_norms_are_named_by_block_and_place(logged_run: Path) -> None:
    """Those of the layers are within that of all; the first of a block keeps its name."""
    points = of_kind(logged_run, "point")
    assert LAYERS[4] == [f"grad_norm/block_{name}" for name in BLOCKS_AND_PLACES]
    assert set(LAYERS[2]) < set(LAYERS[4])
    for point in points:
        names = [name for name in point if name.startswith("grad_norm/")]
        assert names == LAYERS[int(point["train/depth"])]
        squares = sum(point[name] ** 2 for name in names)
        assert all(point[name] > 0 for name in names)
        assert squares**0.5 < point["train/grad_norm"]


def test_tensorboard_gets_the_same_scalars_tables_and_pictures(logged_run: Path) -> None:
    """Read back by its own reader."""
    (directory,) = logged_run.glob("board/version_*")
    board = EventAccumulator(str(directory))
    board.Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) >= {*AXES, *SCALARS, *LAYERS[4]}
    points = {point["step"] - 1: point for point in of_kind(logged_run, "point")}
    for name in ("train/loss", "train/grad_norm", "split/backward"):
        logged = {scalar.step: scalar.value for scalar in board.Scalars(name)}
        wanted = {step: point[name] for step, point in points.items()}
        assert logged == pytest.approx(wanted, rel=1e-5)
    assert {"growth/lineage/text_summary", "stages/summary/text_summary"} <= set(tags["tensors"])
    assert len(board.Images("similarity/layers")) == 2


def test_events_are_the_same_without_any_logger(teacher_directory: Path, tmp_path: Path) -> None:
    """The file of events needs none; and training is the same, with it and without."""
    assert fit(tmp_path / "silent", teacher_directory, *LONG, "--trainer.logger=false") == 0
    assert fit(tmp_path / "logged", teacher_directory, *LONG) == 0
    silent, logged = (of_kind(tmp_path / name, "point") for name in ("silent", "logged"))
    assert [point["train/loss"] for point in silent] == [point["train/loss"] for point in logged]


def test_an_interrupted_run_logs_everything_once(
    teacher_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped around its growth and resumed: the events of a run that was not."""
    whole = tmp_path / "whole"
    assert fit(whole, teacher_directory, *LONG) == 0

    def without_clock(directory: Path) -> list[dict[str, Any]]:
        measured = ("progress/wall", "speed/", "split/", "memory/", "training_seconds")
        return [
            {key: event[key] for key in event if not key.startswith(measured)}
            for event in read_events(directory)
        ]

    for cut in (11, 12, 13):
        stopped = tmp_path / f"stopped{cut}"
        with monkeypatch.context() as patched:
            step = stopping_at(cut, Distillation.training_step)
            patched.setattr(Distillation, "training_step", step)
            assert fit(stopped, teacher_directory, *LONG) == 75
        assert fit(stopped, teacher_directory, *LONG, "--ckpt_path=last") == 0
        assert without_clock(stopped) == without_clock(whole), cut


def test_with_a_cache_the_map_is_of_the_taps(teacher_directory: Path, tmp_path: Path) -> None:
    """There is no teacher whose other layers could be asked."""
    assert cache(tmp_path / "cache", teacher_directory, "--dtype=float32") == 0
    words = (*LONG, f"--data.target_cache={tmp_path / 'cache'}")
    assert fit(tmp_path / "run", teacher_directory, *words) == 0
    maps = of_kind(tmp_path / "run", "similarity")
    assert [each["teacher_layers"] for each in maps] == [[2, 4], [2, 4]]
    points = of_kind(tmp_path / "run", "point")
    assert all(point["split/teacher"] == 0 for point in points)


def test_a_recovery_is_logged_before_the_next_growth_step_and_the_end(
    teacher_directory: Path, tmp_path: Path
) -> None:
    """Although no point comes in between; and its figures are those of its own growth."""
    words = ("--trainer.max_steps=60", "--trainer.log_every_n_steps=23", "--growth.depths=[2,3,4]")
    assert fit(tmp_path / "run", teacher_directory, *words) == 0
    events = [event for event in read_events(tmp_path / "run") if event["kind"] in RECOVERING]
    assert [event["kind"] for event in events] == ["growth", "recovery"] * 2
    for event in events[1::2]:
        assert event["before"] > 0
        assert event["peak"] > 0
        assert event["after_steps"] >= 5
        assert set(AXES) <= event.keys()


def test_an_unlogged_recovery_is_in_the_checkpoint() -> None:
    """It is logged when the run is resumed."""
    meters = RunMeters()
    for loss in (1.0, 1.0):
        meters.spike.add(loss)
    meters.spike.start()
    for loss in (2.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        meters.spike.add(loss)
    resumed = RunMeters.of_state(json.loads(json.dumps(meters.state_dict())))
    assert resumed.spike.is_unlogged
    assert resumed.spike.recovered_after == 6


def test_a_resumed_run_continues_counting_since_its_last_point() -> None:
    """What came between the point and the checkpoint belongs to the next point."""
    meters = RunMeters()
    meters.totals = Totals(10.0, 12.0, 5.0, 1.0)
    meters.add_step(None)
    assert meters.take_since() == (meters.totals, 1)
    meters.add_step(None)
    resumed = RunMeters.of_state(json.loads(json.dumps(meters.state_dict())))
    resumed.totals = Totals(15.0, 18.0, 8.0, 3.0)
    resumed.add_step(None)
    assert resumed.take_since() == (Totals(5.0, 6.0, 3.0, 2.0), 2)


def test_maps_have_lines_between_blocks() -> None:
    """Across and along where both sides are the student's; none in a stack that has not grown."""
    event: dict[str, Any] = {"teacher": np.eye(5, 3), "teacher_layers": [0, 2, 4]}
    event |= {"student": np.eye(5), "layers": ["1.1", "1.2", "2.1", "2.2"]}
    with_student, with_teacher = similarity_figure(event).axes[:2]
    assert [line.get_ydata()[0] for line in with_teacher.lines] == [0.5, 2.5]
    assert len(with_student.lines) == 4
    event["layers"] = ["1.1", "2.1", "3.1", "4.1"]
    assert not any(axes.lines for axes in similarity_figure(event).axes)


def test_layers_keep_readable_names_when_they_are_renumbered() -> None:
    """Block and place, whatever operator grew the stack."""
    plan = plan_growth(get_operator("append"), (0, 1), 4)
    rows = layer_rows((0, 1, 0, 1), plan, (1, 3))
    assert [row["name"] for row in rows] == ["1.1", "2.1", "1.2", "2.2"]
    assert [row["kind"] for row in rows] == ["original", "original", "clone", "clone"]

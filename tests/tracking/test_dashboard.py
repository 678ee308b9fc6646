"""What a run tells of itself: to every logger, and to its own file."""

from __future__ import annotations

import csv
import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached_runs import cache, fit, fit_words, stopping_at
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from interstack.distillation.module import Distillation
from interstack.growth.operators import get_operator, plan_growth
from interstack.tracking.event_figures import GROWTH_METRICS
from interstack.tracking.events import append_event, read_events, trim_events
from interstack.tracking.lineage import COLUMNS, layer_rows
from interstack.tracking.metrics_file import MetricsFile, read_rows, trim_rows
from interstack.tracking.pictures import similarity_figure
from interstack.tracking.points import (
    AXES,
    POINT_METRICS,
    layer_metrics,
    loss_metrics,
)
from interstack.tracking.run_meters import RunMeters
from interstack.tracking.step_clock import PARTS
from interstack.tracking.totals import Totals

LOGGERS = json.dumps(
    [
        {"class_path": "MetricsFile", "init_args": {"save_dir": "."}},
        {
            "class_path": "WandbLogger",
            "init_args": {"project": "interstack", "save_dir": ".", "offline": True},
        },
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": ".", "name": "board"}},
    ]
)
LAYERS = {2: layer_metrics((0, 1)), 4: layer_metrics((0, 0, 1, 1))}
"""Names of the gradients' norms at both depths."""
RECOVERING = ("growth", "recovery")
BLOCKS_AND_PLACES = ("1_place_1", "1_place_2", "2_place_1", "2_place_2")
SCALARS = (*loss_metrics((2, 4)), *POINT_METRICS, *GROWTH_METRICS)
LONG = ("--trainer.max_steps=24", "--trainer.log_every_n_steps=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """A run of 24 steps that grew once, told to a file of metrics, W&B offline and TensorBoard."""
    directory = tmp_path_factory.mktemp("runs") / "told"
    words = (*LONG, f"--trainer.logger={LOGGERS}", "--trainer.check_val_every_n_epoch=1")
    assert fit(directory, teacher_directory, *words) == 0
    return directory


def of_kind(directory: Path, kind: str) -> list[Any]:
    """Return a run's events of a kind."""
    return [event for event in read_events(directory) if event["kind"] == kind]


def offline_records(file: Path) -> Iterator[bytes]:
    """Yield the records of W&B's offline file: LevelDB's log format behind seven bytes of header.

    Blocks of 32 KiB; in them checksum, length and kind of each piece: whole, first, middle, last.
    """
    content, position, pieces = file.read_bytes(), 7, []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        pieces.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):
            yield b"".join(pieces)
            pieces = []


class Offline:
    """An offline W&B run, read back; of one that was cut and went on the last part.

    Attributes:
        rows: Its history, numbers only by their names, media as what is said of their files.
        defined: Names of the metrics that it defined.
        alerts: Their titles and texts.
        exit_code: With which it ended; None if it has not.
    """

    def __init__(self, directory: Path, part: int = -1) -> None:
        self.directory = sorted(directory.glob("wandb/offline-run-*"))[part]
        self.rows: list[dict[str, Any]] = []
        self.defined: list[str] = []
        self.alerts: list[tuple[str, str]] = []
        self.exit_code: int | None = None
        (file,) = self.directory.glob("*.wandb")
        for data in offline_records(file):
            self._read(data)

    def _read(self, data: bytes) -> None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if inner:
                    row.setdefault(name, {})[".".join(inner)] = value
                else:
                    row[name] = value
            self.rows.append(row)
        elif kind == "metric":
            self.defined.append(record.metric.name)
        elif kind == "alert":
            self.alerts.append((record.alert.title, record.alert.text))
        elif kind == "exit":
            self.exit_code = record.exit.exit_code

    def media(self, name: str) -> list[Path]:
        """Return the files that were logged under a name, in order."""
        return [self.directory / "files" / row[name]["path"] for row in self.rows if name in row]

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of the last table under a name."""
        content = json.loads(self.media(name)[-1].read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_points_hold_everything_that_is_promised(run: Path) -> None:
    """Twelve of them, on rising axes, the parts of a step within it."""
    points = of_kind(run, "point")
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


def test_the_axes_are_the_sums_of_the_stages(run: Path) -> None:
    """One count of audio and of time, whichever file tells it; without validation."""
    stages = json.loads((run / "stages.json").read_text())["stages"]
    told = of_kind(run, "stage")
    for number, event in enumerate(told, start=1):
        for axis, name in zip(AXES, ("audio_seconds", "training_seconds"), strict=False):
            total = sum(stage[name] for stage in stages[:number])
            assert 3600 * event[axis] == pytest.approx(total)
    assert all(stage["padded_seconds"] >= stage["audio_seconds"] > 0 for stage in stages)


def test_a_growth_is_told_with_its_lineage_and_its_losses(run: Path) -> None:
    """The validation losses are those of the table of stages."""
    (growth,) = of_kind(run, "growth")
    stages = json.loads((run / "stages.json").read_text())["stages"]
    assert (growth["from_depth"], growth["to_depth"], growth["step"]) == (2, 4, 12)
    assert growth["validation_before"] == stages[0]["validation_loss_after"]
    assert growth["validation_after"] == stages[1]["validation_loss_before"]
    assert [row["name"] for row in growth["layers"]] == ["1.1", "1.2", "2.1", "2.2"]
    assert [row["kind"] for row in growth["layers"]] == ["original", "clone"] * 2
    assert [row["parent"] for row in growth["layers"]] == [1, 1, 2, 2]
    assert [row["tap"] for row in growth["layers"]] == [False, True, False, True]


def test_every_stage_ends_with_its_summary_and_its_similarity(run: Path) -> None:
    """Layers with themselves are alike; the teacher's are there up to its deepest tap."""
    assert [stage["depth"] for stage in of_kind(run, "stage")] == [2, 4]
    maps = of_kind(run, "similarity")
    assert [each["depth"] for each in maps] == [2, 4]
    for each in maps:
        student = torch.tensor(each["student"])
        assert student.shape == (each["depth"] + 1,) * 2
        torch.testing.assert_close(student.diagonal(), torch.ones(each["depth"] + 1))
        torch.testing.assert_close(student, student.T, rtol=0, atol=2e-4)
        assert each["teacher_layers"] == [0, 1, 2, 3, 4]
        assert torch.tensor(each["teacher"]).shape == (each["depth"] + 1, 5)


def test_the_metrics_file_has_the_same_points(run: Path) -> None:
    """Row by row what the events say."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    points = of_kind(run, "point")
    assert len(rows) == len(points)
    for row, point in zip(rows, points, strict=True):
        assert int(row["step"]) == point["step"] - 1  # Lightning counts from 0
        for name in (*AXES, *POINT_METRICS, "train/loss"):
            assert float(row[name]) == pytest.approx(point[name], rel=1e-5, abs=1e-12)


def test_whatever_is_logged_shares_its_row_with_the_axes(run: Path) -> None:
    """W&B draws a metric against an axis only where both are in one row; losses and growths too."""
    with (run / "metrics.csv").open() as file:
        in_file = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    for rows in (Offline(run).rows, in_file):
        told = [row for row in rows if any(key in row for key in SCALARS)]
        assert sum("train/loss" in row for row in told) == 12
        assert sum("val/loss" in row for row in told) == 1
        assert sum("growth/validation_after" in row for row in told) == 1
        assert sum("growth/recovered_after_steps" in row for row in told) == 1
        for row in told:
            assert row.keys() >= set(AXES), row


def test_gradient_norms_are_named_by_block_and_place(run: Path) -> None:
    """Those of the layers are within that of all; the first of a block keeps its name."""
    points = of_kind(run, "point")
    assert LAYERS[4] == [f"grad_norm/block_{name}" for name in BLOCKS_AND_PLACES]
    assert set(LAYERS[2]) < set(LAYERS[4])
    for point in points:
        names = [name for name in point if name.startswith("grad_norm/")]
        assert names == LAYERS[int(point["train/depth"])]
        squares = sum(point[name] ** 2 for name in names)
        assert all(point[name] > 0 for name in names)
        assert squares**0.5 < point["train/grad_norm"]


def test_weights_and_biases_offline_has_every_key_table_and_picture(run: Path) -> None:
    """Read back from the file that is synced later: it is whole, and its media are there."""
    offline = Offline(run)
    assert offline.exit_code == 0
    assert {*AXES, *SCALARS, *LAYERS[4], "trainer/global_step"} <= set(offline.defined)
    assert {key for row in offline.rows for key in row} >= {*AXES, *SCALARS, *LAYERS[4]}
    (growth,) = of_kind(run, "growth")
    lineage = offline.table("growth/lineage_4")
    assert lineage == [{column: row[column] for column in COLUMNS} for row in growth["layers"]]
    summary = offline.table("stages/summary")
    stages = of_kind(run, "stage")
    assert [row["depth"] for row in summary] == [2, 4]
    for row, stage in zip(summary, stages, strict=True):
        for name, value in row.items():
            assert value == pytest.approx(stage[name]) if value is not None else stage[name] is None
    pictures = offline.media("similarity/layers")
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as image:
            assert len(image.convert("L").getcolors()) > 50  # shades: it is no blank
    ((title, text),) = offline.alerts
    assert title == "grown from 2 to 4 layers"
    assert f"{growth['validation_before']:.4f} → {growth['validation_after']:.4f}" in text


def test_tensorboard_gets_the_same_scalars_tables_and_pictures(run: Path) -> None:
    """Read back by its own reader."""
    (directory,) = run.glob("board/version_*")
    board = EventAccumulator(str(directory))
    board.Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) >= {*AXES, *SCALARS, *LAYERS[4]}
    points = {point["step"] - 1: point for point in of_kind(run, "point")}
    for name in ("train/loss", "train/grad_norm", "split/backward"):
        told = {scalar.step: scalar.value for scalar in board.Scalars(name)}
        wanted = {step: point[name] for step, point in points.items()}
        assert told == pytest.approx(wanted, rel=1e-5)
    assert {"growth/lineage/text_summary", "stages/summary/text_summary"} <= set(tags["tensors"])
    assert len(board.Images("similarity/layers")) == 2


def test_without_an_account_the_mend_is_told(teacher_directory: Path, tmp_path: Path) -> None:
    """In a line, before anything is trained; in a process that no offline run came before."""
    online = '[{"class_path": "WandbLogger", "init_args": {"project": "x", "save_dir": "."}}]'
    words = fit_words(tmp_path / "run", teacher_directory, f"--trainer.logger={online}")
    secrets = ("WANDB_API_KEY", "WANDB_MODE")
    surroundings = {name: value for name, value in os.environ.items() if name not in secrets}
    done = subprocess.run(
        [sys.executable, "-m", "interstack.cli", *words],
        env=surroundings | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    told = r"^error: Weights & Biases: No API key.*offline: true"
    assert re.search(told, done.stderr, re.MULTILINE), done.stderr
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_without_any_logger_the_run_tells_the_same(teacher_directory: Path, tmp_path: Path) -> None:
    """The file of events needs none; and training is the same, with it and without."""
    assert fit(tmp_path / "silent", teacher_directory, *LONG, "--trainer.logger=false") == 0
    assert fit(tmp_path / "told", teacher_directory, *LONG) == 0
    silent, told = (of_kind(tmp_path / name, "point") for name in ("silent", "told"))
    assert [point["train/loss"] for point in silent] == [point["train/loss"] for point in told]


def test_a_cut_run_tells_everything_once(
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


def test_a_resumed_offline_run_holds_its_beginning_too(
    teacher_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part takes the place of the earlier one when it is synced, and has everything once."""
    words = (*LONG, f"--trainer.logger={LOGGERS}", "--trainer.check_val_every_n_epoch=1")
    directory = tmp_path / "cut"
    with monkeypatch.context() as patched:
        step = stopping_at(19, Distillation.training_step)
        patched.setattr(Distillation, "training_step", step)
        assert fit(directory, teacher_directory, *words) == 75
    time.sleep(1.1)  # parts are named by the second
    assert fit(directory, teacher_directory, *words, "--ckpt_path=last") == 0
    first, second = Offline(directory, 0), Offline(directory, 1)
    assert (first.exit_code, second.exit_code) == (75, 0)
    losses = {event["step"]: event["train/loss"] for event in of_kind(directory, "point")}
    told = [row for row in second.rows if "train/loss" in row]
    assert [row["trainer/global_step"] + 1 for row in told] == list(losses)
    for row, loss in zip(told, losses.values(), strict=True):
        assert row["train/loss"] == pytest.approx(loss)
        assert row.keys() >= set(AXES)
    keys = [key for row in second.rows for key in row]
    for name in ("growth/lineage_4", "growth/validation_after", "val/loss"):
        assert keys.count(name) == 1
    assert [row["depth"] for row in second.table("stages/summary")] == [2, 4]
    assert len(second.media("similarity/layers")) == 2
    assert len(first.alerts) == 1
    assert second.alerts == []


def test_with_a_cache_the_map_is_of_the_taps(teacher_directory: Path, tmp_path: Path) -> None:
    """There is no teacher whose other layers could be asked."""
    assert cache(tmp_path / "cache", teacher_directory, "--dtype=float32") == 0
    words = (*LONG, f"--data.target_cache={tmp_path / 'cache'}")
    assert fit(tmp_path / "run", teacher_directory, *words) == 0
    maps = of_kind(tmp_path / "run", "similarity")
    assert [each["teacher_layers"] for each in maps] == [[2, 4], [2, 4]]
    points = of_kind(tmp_path / "run", "point")
    assert all(point["split/teacher"] == 0 for point in points)


def test_a_recovery_is_told_before_the_next_growth_and_the_end(
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


def test_a_recovery_that_nobody_was_told_of_outlives_a_checkpoint() -> None:
    """It is told when the run goes on."""
    meters = RunMeters()
    for loss in (1.0, 1.0):
        meters.spike.add(loss)
    meters.spike.grown()
    for loss in (2.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        meters.spike.add(loss)
    resumed = RunMeters.of_state(json.loads(json.dumps(meters.state_dict())))
    assert resumed.spike.has_news
    assert resumed.spike.recovered_after == 6


def test_a_resumed_run_goes_on_counting_since_its_last_point() -> None:
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


def test_metrics_are_trimmed_to_a_checkpoint(tmp_path: Path) -> None:
    """A growth comes before the step whose index it has: it is kept if the checkpoint has grown."""
    metrics = MetricsFile(str(tmp_path))
    metrics.log_metrics({"train/loss": 1.0}, 3)
    metrics.log_metrics({"growth/depth": 4.0}, 4)
    metrics.log_metrics({"train/loss": 0.9}, 4)
    metrics.save()
    path = tmp_path / "metrics.csv"
    assert trim_rows(path, 4, depth=4) == 1
    assert [row["growth/depth"] for row in read_rows(path)[1]] == ["", "4.0"]
    assert trim_rows(path, 4, depth=2) == 1
    assert [row["train/loss"] for row in read_rows(path)[1]] == ["1.0"]


def test_events_are_trimmed_to_a_checkpoint(tmp_path: Path) -> None:
    """Whether it was written before a growth or after it; half a line is no event."""
    told: list[tuple[str, int, dict[str, int]]] = [
        ("point", 4, {}),
        ("stage", 4, {"depth": 3}),
        ("growth", 4, {"to_depth": 6}),
        ("point", 5, {}),
    ]
    for kind, step, content in told:
        append_event(tmp_path, {"kind": kind, "step": step, **content})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "point", "ste')
    assert len(read_events(tmp_path)) == 4
    trim_events(tmp_path, 4, 6)
    assert [event["kind"] for event in read_events(tmp_path)] == ["point", "stage", "growth"]
    trim_events(tmp_path, 4, 3)
    assert [event["kind"] for event in read_events(tmp_path)] == ["point"]


def test_a_full_disk_costs_an_event_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is said."""
    blocked = tmp_path / "file"
    blocked.touch()
    append_event(blocked, {"kind": "point", "step": 1})
    assert "an event is lost" in caplog.text


def test_layers_keep_readable_names_when_they_are_renumbered() -> None:
    """Block and place, whatever operator grew the stack."""
    plan = plan_growth(get_operator("append"), (0, 1), 4)
    rows = layer_rows((0, 1, 0, 1), plan, (1, 3))
    assert [row["name"] for row in rows] == ["1.1", "2.1", "1.2", "2.2"]
    assert [row["kind"] for row in rows] == ["original", "original", "clone", "clone"]

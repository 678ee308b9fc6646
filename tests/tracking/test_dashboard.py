"""What a run tells of itself: to every logger, and to its own file."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from cached_runs import cache, fit, stopping_at
from lightning.pytorch.loggers import TensorBoardLogger
from wandb.proto import wandb_internal_pb2

from interstack.distillation.module import Distillation
from interstack.growth.operators import get_operator, plan_growth
from interstack.tracking.boards import TensorBoardBoard
from interstack.tracking.events import append_event, read_events, trim_events
from interstack.tracking.layer_similarity import LayerSimilarity
from interstack.tracking.lineage import layer_rows
from interstack.tracking.points import AXES, POINT_METRICS
from interstack.tracking.step_clock import PARTS

LOGGERS = json.dumps(
    [
        {"class_path": "MetricsFile", "init_args": {"save_dir": "."}},
        {
            "class_path": "WandbLogger",
            "init_args": {"project": "interstack", "save_dir": ".", "offline": True},
        },
    ]
)
LONG = ("--trainer.max_steps=24", "--trainer.log_every_n_steps=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher_directory: Path) -> Path:
    """A run of 24 steps that grew once, with a file of metrics and W&B offline."""
    directory = tmp_path_factory.mktemp("runs") / "told"
    words = (*LONG, f"--trainer.logger={LOGGERS}", "--trainer.check_val_every_n_epoch=1")
    assert fit(directory, teacher_directory, *words) == 0
    wandb.finish()
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


def offline_history(directory: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read an offline W&B run back: its rows, and the metrics that it defined."""
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    rows, defined = [], []
    for data in offline_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = ((item.key, item.nested_key, item.value_json) for item in record.history.item)
            rows.append(
                {key or ".".join(nested): json.loads(value) for key, nested, value in items}
            )
        elif kind == "metric":
            defined.append(record.metric.name)
    return rows, defined


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


def test_weights_and_biases_offline_has_every_key_table_and_picture(run: Path) -> None:
    """Read back from the file that is synced later, and its media are there."""
    rows, defined = offline_history(run)
    assert {*AXES, *POINT_METRICS, "trainer/global_step"} <= set(defined)
    keys = {key.partition(".")[0] for row in rows for key in row}
    tables = {"growth/lineage_4", "stages/summary"}
    assert keys >= {*AXES, *POINT_METRICS, *tables, "similarity/layers", "val/loss"}
    points = [row for row in rows if "train/grad_norm" in row]
    assert len(points) == 12
    assert all("train/loss" in row and set(AXES) <= row.keys() for row in points)
    media = {path.name.rpartition("_")[0] for path in run.glob("wandb/offline-*/files/media/*/*/*")}
    assert {name.split("_")[0] for name in media} >= {"lineage", "summary", "layers"}


def test_without_any_logger_the_run_tells_the_same(teacher_directory: Path, tmp_path: Path) -> None:
    """The file of events needs none; and training is the same, with it and without."""
    assert fit(tmp_path / "silent", teacher_directory, *LONG, "--trainer.logger=false") == 0
    assert fit(tmp_path / "told", teacher_directory, *LONG) == 0
    silent, told = (of_kind(tmp_path / name, "point") for name in ("silent", "told"))
    assert [point["train/loss"] for point in silent] == [point["train/loss"] for point in told]


def test_tensorboard_gets_pictures_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the scalars, which Lightning gives every logger."""
    written: list[tuple[str, str]] = []

    class Writer:
        """Stands for tensorboard's, which is no dependency."""

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda tag, *_, **__: written.append((name, tag))

    monkeypatch.setattr(TensorBoardLogger, "experiment", Writer())
    board = TensorBoardBoard(TensorBoardLogger.__new__(TensorBoardLogger))
    plan = plan_growth(get_operator("interleave"), (0,), 2)
    board.growth(4, {"layers": layer_rows((0, 0), plan, (1,))})
    board.recovery(4, {"before": 1.0, "peak": 1.5, "after_steps": 7})
    board.stage(4, {"depth": 2})
    identity = torch.eye(3, dtype=torch.float64)
    board.similarity(4, [0, 0], LayerSimilarity(identity, identity, (0, 2, 4)))
    assert written == [
        ("add_text", "growth/lineage"),
        ("add_scalar", "growth/loss_peak"),
        ("add_scalar", "growth/recovered_after_steps"),
        ("add_text", "stages/summary"),
        ("add_image", "similarity/layers"),
    ]


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


def test_with_a_cache_the_map_is_of_the_taps(teacher_directory: Path, tmp_path: Path) -> None:
    """There is no teacher whose other layers could be asked."""
    assert cache(tmp_path / "cache", teacher_directory, "--dtype=float32") == 0
    words = (*LONG, f"--data.target_cache={tmp_path / 'cache'}")
    assert fit(tmp_path / "run", teacher_directory, *words) == 0
    maps = of_kind(tmp_path / "run", "similarity")
    assert [each["teacher_layers"] for each in maps] == [[2, 4], [2, 4]]
    points = of_kind(tmp_path / "run", "point")
    assert all(point["split/teacher"] == 0 for point in points)


def test_events_are_trimmed_to_a_checkpoint(tmp_path: Path) -> None:
    """Whether it was written before a growth or after it; half a line is no event."""
    told: list[tuple[str, int, dict[str, int]]] = [
        ("point", 4, {}),
        ("stage", 4, {"depth": 3}),
        ("growth", 4, {"to_depth": 6}),
        ("point", 5, {}),
    ]
    for kind, step, content in told:
        append_event(tmp_path, kind, step, **content)  # type: ignore[arg-type]
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
    append_event(blocked, "point", 1)
    assert "an event is lost" in caplog.text


def test_layers_keep_readable_names_when_they_are_renumbered() -> None:
    """Block and place, whatever operator grew the stack."""
    plan = plan_growth(get_operator("append"), (0, 1), 4)
    rows = layer_rows((0, 1, 0, 1), plan, (1, 3))
    assert [row["name"] for row in rows] == ["1.1", "2.1", "1.2", "2.2"]
    assert [row["kind"] for row in rows] == ["original", "original", "clone", "clone"]

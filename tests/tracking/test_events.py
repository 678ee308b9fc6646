"""The run's own files of events and metrics, cut back to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from interstack.errors import ConfigurationError
from interstack.tracking.events import append_event, read_events, trim_events
from interstack.tracking.metrics_file import MetricsFile, read_rows, trim_rows
from interstack.utils.disk import deferred_writes
from tests.checkpointing.full_disks import NoSpace


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
    events: list[tuple[str, int, dict[str, int]]] = [
        ("point", 4, {}),
        ("stage", 4, {"depth": 3}),
        ("growth", 4, {"to_depth": 6}),
        ("point", 5, {}),
    ]
    for kind, step, content in events:
        append_event(tmp_path, {"kind": kind, "step": step, **content})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "point", "ste')
    assert len(read_events(tmp_path)) == 4
    trim_events(tmp_path, 4, 6)
    assert [event["kind"] for event in read_events(tmp_path)] == ["point", "stage", "growth"]
    trim_events(tmp_path, 4, 3)
    assert [event["kind"] for event in read_events(tmp_path)] == ["point"]


def test_events_of_a_full_disk_are_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is written later, in order; the fault is logged once."""
    append_event(tmp_path, {"kind": "point", "step": 1})
    with deferred_writes():
        with NoSpace(tmp_path):
            for step in (2, 3):
                append_event(tmp_path, {"kind": "point", "step": step})
        assert caplog.text.count("can't be written (No space left on device)") == 1
        assert [event["step"] for event in read_events(tmp_path)] == [1]
        append_event(tmp_path, {"kind": "point", "step": 4})
        assert [event["step"] for event in read_events(tmp_path)] == [1, 2, 3, 4]


def test_unreadable_events_are_an_error(tmp_path: Path) -> None:
    """A run's history would be lost when it is trimmed."""
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(ConfigurationError, match=r"can.t be read \(Is a directory\): give"):
        read_events(tmp_path)

"""Atomic and deferred writes, on a disk that really refuses them."""

from __future__ import annotations

import os
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from interstack.checkpointing import writer
from interstack.commands.run_directory import is_first_process
from interstack.errors import CheckpointError
from interstack.tracking.metrics_file import MetricsFile, read_rows, trim_rows
from interstack.tracking.tolerant_loggers import tolerate_failures
from interstack.utils.atomic import (
    AtomicCheckpointIO,
    append_whole,
    link_whole,
    write_whole,
)
from interstack.utils.disk import (
    append_or_defer,
    deferred_writes,
    write_deferred,
    write_or_defer,
)
from interstack.utils.random_state import random_state, restore_random_state
from interstack.utils.ranks import Agreement
from tests.checkpointing.full_disks import NoSpace, full_disk


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """And nothing else."""
    path = tmp_path / "file"
    write_whole(path, b"old")
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        write_whole(path, bytes(5000))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_does_not_fit_is_reported_and_not_raised(tmp_path: Path) -> None:
    """The other ranks wait for the one that writes; the earlier checkpoint can still be read."""
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"weights": torch.ones(3)}, path)
    with full_disk(1000):
        plugin.save_checkpoint({"weights": torch.ones(3000)}, path)
    assert plugin.failure is not None
    assert plugin.failure.__traceback__ is None  # its frames would keep the whole checkpoint
    assert torch.load(path, weights_only=True)["weights"].shape == (3,)
    plugin.save_checkpoint({"weights": torch.ones(2)}, path)
    assert plugin.failure is None


def test_appending_is_atomic(tmp_path: Path) -> None:
    """A disk that takes a part of a line does not keep it."""
    path = tmp_path / "run" / "events.jsonl"
    append_whole(path, b"first\n")
    with full_disk(10), pytest.raises(OSError, match="File too large"):
        append_whole(path, b"second\n")
    assert path.read_bytes() == b"first\n"
    append_whole(path, b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


def test_what_can_wait_is_written_as_soon_as_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest content of a replaced file; one warning an outage; what is lost is named."""
    record, lines, lost = (tmp_path / name for name in ("record", "lines", "lost"))
    with deferred_writes():
        with NoSpace(tmp_path):
            for number in (b"1", b"2"):
                assert not write_or_defer(record, number)
                assert not append_or_defer(lines, number)
            assert set(write_deferred()) == {record, lines}
        assert caplog.text.count("can't be written") == 2
        assert write_deferred() == {}
        assert (record.read_bytes(), lines.read_bytes()) == (b"2", b"12")
        disk = NoSpace(tmp_path).__enter__()
        append_or_defer(lost, b"3")
    disk.__exit__()
    assert f"{lost} lacks its last part" in caplog.text
    assert write_deferred() == {}


def test_a_loggers_events_wait_as_well(tmp_path: Path) -> None:
    """TensorBoard's, whose writer's thread a full disk would end for good."""
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    tolerate_failures(logger)
    with deferred_writes():
        for step in range(4):
            with NoSpace(tmp_path) if step in (1, 2) else nullcontext():
                logger.log_metrics({"loss": 1.0}, step)
                logger.save()
    logger.finalize("success")
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert [scalar.step for scalar in accumulator.Scalars("loss")] == [0, 1, 2, 3]


def test_a_second_name_is_a_copy_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none; an earlier file of that name is replaced."""
    target, link = tmp_path / "stage-1.ckpt", tmp_path / "last.ckpt"
    target.write_bytes(b"new")
    link.write_bytes(b"old")
    link_whole(target, link)
    assert link.samefile(target)

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    target.write_bytes(b"newer")
    link_whole(target, link)
    assert link.read_bytes() == b"newer"


def test_a_run_that_ends_on_a_full_disk_waits_before_it_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space that is freed in time saves the last checkpoint."""
    monkeypatch.setattr(writer, "PAUSE_SECONDS", 0.0)
    checkpoints = writer.CheckpointWriter(tmp_path, Agreement())
    answers = iter(["full", "full", None])
    monkeypatch.setattr(checkpoints, "_write", lambda *_: next(answers))
    checkpoints.save_surely(None)  # type: ignore[arg-type]  # nobody asks the Trainer
    assert list(answers) == []
    monkeypatch.setattr(checkpoints, "_write", lambda *_: "full")
    with pytest.raises(CheckpointError, match="free space"):
        checkpoints.save_surely(None)  # type: ignore[arg-type]


def test_random_states_come_back_through_a_file(tmp_path: Path) -> None:
    """Python's, numpy's and torch's, a half-used Gaussian pair included."""

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.normal(), float(torch.rand(()))]

    draw()
    device = torch.device("cpu")
    torch.save(random_state(device), tmp_path / "state")
    expected = [draw(), draw()]
    restore_random_state(torch.load(tmp_path / "state", weights_only=True), device)
    assert [draw(), draw()] == expected


def test_metrics_go_on_behind_an_earlier_part(tmp_path: Path) -> None:
    """New columns, and a disk that is full in between, lose no row."""
    first = MetricsFile(str(tmp_path))
    for step in range(4):
        first.log_metrics({"loss": 1.0 - step / 10}, step)
    first.save()
    path = tmp_path / "metrics.csv"
    assert trim_rows(path, 2, depth=3) == 2
    second = MetricsFile(str(tmp_path))
    second.log_metrics({"loss": 0.8}, 2)
    with full_disk(path.stat().st_size + 2):
        second.save()
    assert len(read_rows(path)[1]) == 2
    second.log_metrics({"loss": 0.7, "depth": 4.0}, 3)
    second.save()
    columns, rows = read_rows(path)
    assert columns == ["depth", "loss", "step"]
    assert [(row["step"], row["loss"], row["depth"]) for row in rows] == [
        ("0", "1.0", ""),
        ("1", "0.9", ""),
        ("2", "0.8", ""),
        ("3", "0.7", "4.0"),
    ]


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0"}, True),
    ],
)
def test_every_launcher_has_one_first_process(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun, Lightning's own launcher, srun, or none."""
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first

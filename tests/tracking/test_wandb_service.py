"""W&B's own process ends, or its disk is full: the training goes on, and it is said once."""

from __future__ import annotations

import csv
import gc
import json
import logging
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from interstack.distillation.module import Distillation
from interstack.tracking.loggers import WandbEventLogger
from interstack.tracking.tolerant_loggers import tolerate_failures
from interstack.tracking.wandb import finished_wandb, read_sync_file
from tests.target_cache.cached_runs import fit


@pytest.fixture(autouse=True)
def fresh_client() -> Iterator[None]:
    """Leave no client behind whose process is dead."""
    wandb.teardown()
    yield
    wandb.teardown()
    with warnings.catch_warnings():  # nobody has waited for a process that a test has killed
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def _service() -> int:
    """Return the process that W&B's client has started for this one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if words[0].endswith("wandb-core") and str(os.getpid()) in words:
                return int(entry.name)
    raise AssertionError("W&B has no process")


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        each.message
        for each in caplog.records
        if each.levelno >= logging.WARNING and "Weights & Biases" in each.message
    ]


def _calling_at(call: int, work: Callable[..., Any], then: Callable[[], None]) -> Any:  # noqa: ANN401
    calls: list[None] = []

    def calling(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        calls.append(None)
        if len(calls) == call:
            then()
        return work(*arguments, **named)

    return calling


def test_training_continues_without_the_service(
    teacher_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is killed after two of four steps: the run's own files and the student are complete."""

    def kill() -> None:
        os.kill(_service(), signal.SIGKILL)

    step = _calling_at(3, Distillation.training_step, kill)
    monkeypatch.setattr(Distillation, "training_step", step)
    offline = {"project": "x", "save_dir": ".", "offline": True}
    loggers = [
        {"class_path": "WandbLogger", "init_args": offline},
        {"class_path": "MetricsFile", "init_args": {"save_dir": "."}},
    ]
    run = tmp_path / "run"
    assert fit(run, teacher_directory, f"--trainer.logger={json.dumps(loggers)}") == 0
    error = capsys.readouterr().err
    (directory,) = run.glob("wandb/offline-run-*")
    assert error.count("Weights & Biases") == 1
    assert "own process has ended" in error
    assert f"wandb sync {directory} sends " in error
    assert "Traceback" not in error
    with (run / "metrics.csv").open() as file:
        assert sum(bool(row["train/loss"]) for row in csv.DictReader(file)) == 4
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert (kinds.count("stage"), kinds.count("growth")) == (2, 1)
    assert (run / "student" / "model.safetensors").exists()


def test_a_service_that_has_ended_is_not_called(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither scalars nor tables nor the end of the run; another run can begin after it."""
    with finished_wandb():
        logger = WandbLogger(project="x", save_dir=tmp_path, id="abc12345", offline=True)
        tolerate_failures(logger)
        board = WandbEventLogger(logger)
        board.define(["loss"])
        logger.log_metrics({"loss": 1.0}, 0)
        os.kill(_service(), signal.SIGKILL)
        for number in range(3):
            board.define(["other"])
            logger.log_metrics({"loss": 2.0}, number + 1)
            logger.log_hyperparams({"a": 1})
            board.catch_up([{"kind": "point", "step": 1, "train/loss": 1.0}])
    assert len(_warnings(caplog)) == 1
    with finished_wandb():
        other = WandbLogger(project="x", save_dir=tmp_path, id="abc54321", offline=True)
        other.log_metrics({"loss": 1.0}, 0)
    (directory,) = tmp_path.glob("wandb/offline-run-*-abc54321")
    assert read_sync_file(directory).is_complete


def test_an_offline_file_that_a_full_disk_cut_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to which step it is sent: W&B writes nothing more into it, and does not say so."""
    with caplog.at_level(logging.INFO, "interstack"), finished_wandb():
        logger = WandbLogger(project="x", save_dir=tmp_path, id="abc12345", offline=True)
        for step in range(30):
            logger.log_metrics({f"m{number}": float(step) for number in range(40)}, step)
        service = _service()
        resource.prlimit(service, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        for step in range(30, 90):
            logger.log_metrics({f"m{number}": float(step) for number in range(40)}, step)
    (warning,) = _warnings(caplog)
    (directory,) = tmp_path.glob("wandb/offline-run-*")
    (file,) = directory.glob("*.wandb")
    assert file.stat().st_size <= 50_000
    found = read_sync_file(directory)
    assert not found.is_complete
    assert 20 < found.steps < 90
    assert f"wandb sync {directory} sends the run up to step {found.steps};" in warning


def test_the_offline_file_of_a_finished_run_is_complete(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a warning; also where its file has many blocks, and one that is cut has a step."""
    with caplog.at_level(logging.INFO, "interstack"), finished_wandb():
        logger = WandbLogger(project="x", save_dir=tmp_path, id="abc12345", offline=True)
        for step in range(300):
            logger.log_metrics({f"m{number}": float(step) for number in range(60)}, step)
    assert not _warnings(caplog)
    assert "W&B was offline: wandb sync" in caplog.text
    (directory,) = tmp_path.glob("wandb/offline-run-*")
    assert read_sync_file(directory).is_complete
    (file,) = directory.glob("*.wandb")
    content = file.read_bytes()
    assert len(content) > 10 * 2**15
    file.write_bytes(content[: len(content) // 2])
    assert 100 < read_sync_file(directory).steps < 200
    file.unlink()
    assert read_sync_file(directory).extent == "nothing of its metrics"


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), OSError("refused by the server")])
def test_another_loggers_service_is_called_again(
    error: OSError, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs a warning as long as it lasts; a defect of a logger is an error still."""
    answers: list[Exception | None] = [None, error, error, None, ValueError("a defect")]

    def log_metrics(*_: object) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    logger: Any = SimpleNamespace(log_metrics=log_metrics)
    tolerate_failures(logger)
    for _ in range(4):
        logger.log_metrics({}, 1)
    (message,) = caplog.messages
    assert f"can't write ({error}): training continues" in message
    assert message.endswith("see that its service can be reached")
    with pytest.raises(ValueError, match="a defect"):
        logger.log_metrics({}, 1)

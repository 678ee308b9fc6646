"""Runs of the command line in processes of their own, which tests kill and take up again."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from interstack.cli import main
from tests import REPOSITORY

SPEECH = REPOSITORY / "assets" / "speech"
GROWN_AT, NUM_STEPS, EPOCH = 6, 12, 5
"""Steps before growth, steps of the run, and steps of an epoch: growth is amid the second."""

_MAY_DIFFER = ("interstack_origin", "_seconds", "interstack_config", "num_workers")
"""Wall-clock, and settings that have no part in the result."""
_MOST_NAMED = 40
_MEASURED = ("progress/wall_clock", "speed/", "split/", "memory/")
"""What no two runs have alike."""

# A server that has imported everything forks a fresh process for every run in milliseconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["interstack.commands.lightning"])


@dataclass(frozen=True)
class Run:
    """A run of the command line: where, and with what.

    Attributes:
        directory: The run's directory.
        words: All options of ``fit`` but the directory's.
    """

    directory: Path
    words: tuple[str, ...]

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.directory.with_suffix(".log")

    @property
    def flag(self) -> Path:
        """The file that says that it waits."""
        return self.directory.with_suffix(".flag")

    def start(self, *more: str) -> BaseProcess:
        """Start it in a process of its own."""
        words = ["fit", *self.words, f"--trainer.default_root_dir={self.directory}", *more]
        process = _processes.Process(target=_run, args=(words, str(self.log)), daemon=False)
        process.start()
        return process

    def finish(self, *more: str) -> None:
        """Run it to its end."""
        process = self.start(*more)
        process.join(600)
        assert process.exitcode == 0, self.log.read_text()

    def pause_at(self, step: int, where: str, *more: str) -> BaseProcess:
        """Run it to a point within a step, and let it wait there until `go_on`.

        Args:
            step: Optimizer steps that are done.
            where: The hook it waits in; see ``pauses.PauseAt``.
            *more: More options.
        """
        process = self.start(self.pause(step, where), *more)
        self.wait_for_pause(process.is_alive)
        return process

    def pause(self, step: int, where: str) -> str:
        """Return the option that lets it wait at a point within a step; see `pause_at`."""
        self.flag.unlink(missing_ok=True)
        pause = {"step": step, "where": where, "flag": str(self.flag)}
        callback = json.dumps({"class_path": "tests.survival.pauses.PauseAt", "init_args": pause})
        return f"--trainer.callbacks+={callback}"

    def wait_for_pause(self, is_alive: Callable[[], bool]) -> None:
        """Wait until it waits.

        Args:
            is_alive: Tells whether its process still runs.
        """
        deadline = time.monotonic() + 600
        while not self.flag.exists():
            assert is_alive(), self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def go_on(self, process: BaseProcess) -> int | None:
        """Let a waiting run go on to its end; return its exit status."""
        self.flag.unlink()
        process.join(600)
        return process.exitcode

    def kill_at(self, step: int, where: str, *more: str) -> None:
        """Run it to a point within a step, and kill it there from outside; see `pause_at`."""
        process = self.pause_at(step, where, *more)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL

    def checkpoint(self, name: str = "last") -> dict[str, object]:
        """Read a checkpoint as strictly as the command line does."""
        path = self.directory / "checkpoints" / f"{name}.ckpt"
        content: dict[str, object] = torch.load(path, weights_only=True)
        return content

    def metrics(self) -> list[dict[str, str]]:
        """Return the rows of the metrics' file, but for what the clock and the memory say."""
        with (self.directory / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [name for name in rows[0] if not name.startswith(_MEASURED)]
        return [{name: row[name] for name in kept} for row in rows]


def small_words(teacher: Path, *more: str) -> tuple[str, ...]:
    """Options of a run of twelve steps that grows after six; dropout draws random numbers."""
    return (
        f"--config={REPOSITORY / 'configs' / 'interleaved.yaml'}",
        f"--trainer.max_steps={NUM_STEPS}",
        f"--trainer.limit_train_batches={EPOCH}",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.logger=MetricsFile",
        f"--model.teacher.source={teacher}",
        "--model.teacher.taps=[2,4]",
        "--model.student.hidden_size=16",
        "--model.student.intermediate_size=32",
        "--model.student.num_attention_heads=2",
        "--model.student.dropout=0.1",
        "--growth.depths=[2,4]",
        f"--data.source.init_args.root={SPEECH}",
        "--data.batch_seconds=16",
        "--data.num_workers=0",
        "--checkpoint.every_n_steps=1",
        *more,
    )


def differences(one: object, other: object, name: str = "") -> Iterator[str]:
    """Yield name and values of everything in which two checkpoints differ, but for wall-clock."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            yield f"{name}: {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"
        elif not torch.equal(one, other):
            unequal = one != other
            mine, theirs = one[unequal][:3].tolist(), other[unequal][:3].tolist()
            yield f"{name}: {int(unequal.sum())} of {one.numel()}, first {mine} and {theirs}"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if str(key).endswith(_MAY_DIFFER):
                continue
            if key not in one or key not in other:
                yield f"{name}/{key}: {'only the second has it' if key in other else 'lacking'}"
            else:
                yield from differences(one[key], other[key], f"{name}/{key}")
    elif isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        if len(one) != len(other):
            yield f"{name}: {len(one)} and {len(other)} entries"
        for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            yield from differences(mine, theirs, f"{name}[{place}]")
    elif one != other:
        yield f"{name}: {one!r} and {other!r}"


def free_port() -> int:
    """Return a port that nobody uses, so that several suites can run on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def assert_same_end(one: Run, other: Run) -> None:
    """Two runs end bit by bit alike: all that is saved, and all that was logged."""
    found = [*differences(one.checkpoint(), other.checkpoint(), "last.ckpt")]
    found += differences(one.metrics(), other.metrics(), "metrics.csv")
    if found:  # named by hand: an assertion on the list would be cut, and lost with the directory
        lines = "\n  ".join(found[:_MOST_NAMED])
        pytest.fail(
            f"{one.directory} and {other.directory} differ in {len(found)} places:\n  {lines}\n"
            f"the second one's log:\n{other.log.read_text()}"
        )


def _run(words: list[str], log: str) -> None:
    """What the forked process does."""
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(REPOSITORY)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of nobody's making
    sys.exit(main(words))

"""Sweeps that are killed, that have a failing arm, that are changed or divided."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from interstack.cli import main
from interstack.sweep import queue
from tests import REPOSITORY
from tests.survival import killed_runs
from tests.survival.killed_runs import SPEECH, differences, small_words

KILLS = 2


def study(path: Path, teacher: Path, **more: Any) -> Path:  # noqa: ANN401
    """Write a study of two arms and two seeds whose runs have four steps."""
    config, *words = small_words(
        teacher, "--trainer.max_steps=4", "--trainer.limit_train_batches=2"
    )
    settings = dict(word.removeprefix("--").split("=", 1) for word in words)
    content = {
        "config": config.partition("=")[2],
        "settings": {name: yaml.safe_load(value) for name, value in settings.items()},
        "arms": {"interleave": [], "append": {"growth.operator": "append"}},
        "seeds": [1, 2],
        "baseline": "interleave",
    }
    path.write_text(yaml.safe_dump(content | more, sort_keys=False))
    return path


class _Forked:
    """A process that has everything imported already, in place of a new interpreter."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], log: Path, claim: int
    ) -> None:
        assert os.get_inheritable(claim) is False  # a fork has it all the same
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._run, args=(words, environment, log))
        self._process.start()

    @staticmethod
    def _run(words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        os.environ.update(environment)
        killed_runs._run(list(words), str(log))

    def poll(self) -> int | None:
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def _sweep(words: list[str], log: str) -> None:
    """What the sweep's own process does, as the leader of a process group."""
    os.setpgid(0, 0)
    queue.launch = _Forked
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(REPOSITORY)
    torch.set_num_threads(1)
    sys.exit(main(words))


def start(words: Sequence[str], log: Path) -> BaseProcess:
    """Start a sweep in a process of its own."""
    process = killed_runs._processes.Process(target=_sweep, args=([*words], str(log)))
    process.start()
    return process


def rows(output: Path, name: str) -> list[dict[str, str]]:
    """Return a CSV file of a sweep without its times."""
    with (output / name).open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "hours"}
            for row in csv.DictReader(file)
        ]


def statuses(output: Path) -> dict[str, str]:
    """Return the status of every run that has begun."""
    return {
        path.stem: json.loads(path.read_text())["status"] for path in output.glob("runs/*.json")
    }


def checkpoints(output: Path) -> Iterator[tuple[str, object]]:
    """Yield the last checkpoint of every run."""
    for path in sorted(output.glob("runs/*/checkpoints/last.ckpt")):
        yield path.parent.parent.name, torch.load(path, weights_only=True)


def test_a_sweep_that_is_killed_ends_as_one_that_is_not(
    tmp_path: Path, teacher_directory: Path
) -> None:
    """SIGKILL to all of its processes, at random; the same command resumes, to the same table."""
    file = study(
        tmp_path / "study.yaml",
        teacher_directory,
        cache="float32",
    )
    content = yaml.safe_load(file.read_text())
    content["settings"] |= {"data.crop": "fixed", "data.max_seconds": 2, "data.batch_seconds": 8}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    words = ["sweep", f"--study={file}", "--jobs=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    log = tmp_path / "sweep.log"
    process = start([*words, f"--output={whole}"], log)
    process.join(240)
    assert process.exitcode == 0, log.read_text()

    draw = random.Random(1)
    for kills in range(KILLS):
        process = start([*words, f"--output={killed}"], log)
        deadline = time.monotonic() + 600
        while len(list(killed.glob("runs/*/checkpoints/*.ckpt"))) <= kills and process.is_alive():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        assert process.pid is not None
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    process = start([*words, f"--output={killed}"], log)
    process.join(240)
    assert process.exitcode == 0, log.read_text()

    for name in ("table.csv", "runs.csv"):
        assert rows(killed, name) == rows(whole, name)
    assert [row["n"] for row in rows(whole, "table.csv")] == ["2", "2"]
    assert rows(whole, "table.csv")[1]["p"] != ""
    pairs = list(zip(checkpoints(whole), checkpoints(killed), strict=True))
    assert len(pairs) == 4
    for (name, one), (_, other) in pairs:
        found = [
            each
            for each in differences(one, other, name)
            if not each.startswith(f"{name}/interstack_")
        ]
        assert not found, found[:5]
    assert len(list(whole.glob("caches/targets-float32-*/cache.json"))) == 1
    assert "2 seeds" in (killed / "report.html").read_text()


def test_a_failed_arm_is_reported_and_the_others_are_finished(
    tmp_path: Path,
    teacher_directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Corrected, it is run alone; a finished one whose settings would differ is named."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output, file = tmp_path / "sweep", tmp_path / "study.yaml"
    words = ["sweep", f"--study={file}", f"--output={output}"]
    arms = {"plain": [], "broken": {"data.source.init_args.root": "nowhere", "data.seed": 1}}
    study(file, teacher_directory, arms=arms, seeds=[1], baseline="plain")
    assert main([*words, "--jobs=2"]) == 2
    error = capsys.readouterr().err
    assert "broken-seed1 has failed: " in error
    assert "nowhere" in error
    assert statuses(output) == {"plain-seed1": "finished", "broken-seed1": "failed"}
    assert [row["n"] for row in rows(output, "table.csv")] == ["1", "0"]

    arms["broken"] = {"data.source.init_args.root": str(SPEECH), "data.seed": 1}
    study(file, teacher_directory, arms=arms, seeds=[1], baseline="plain")
    begun = (output / "runs" / "plain-seed1.json").stat().st_mtime_ns
    assert main(words) == 0
    assert set(statuses(output).values()) == {"finished"}
    assert (output / "runs" / "plain-seed1.json").stat().st_mtime_ns == begun
    capsys.readouterr()

    study(file, teacher_directory, arms=arms, seeds=[1, 2], baseline="plain")
    listed = []
    for index in range(2):
        assert main([*words, "--dry-run", f"--partition={index}/2"]) == 0
        listed.append([line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]])
    assert listed == [
        ["plain-seed1 (finished)", "plain-seed2 (new)"],
        ["broken-seed1 (finished)", "broken-seed2 (new)"],
    ]

    arms["plain"] = {"model.optimizer.learning_rate": 0.5}
    study(file, teacher_directory, arms=arms, seeds=[1, 2], baseline="plain")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "plain-seed1 is finished with other settings: model.optimizer.learning_rate was" in error
    assert len(statuses(output)) == 2

"""Small runs on the embedded speech, by the command line, with and without a cache."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from interstack.cli import main
from tests import REPOSITORY

SPEECH: Final = REPOSITORY / "assets" / "speech"
MAX_SECONDS: Final = 1.0


def settings(teacher: Path, *more: str) -> list[str]:
    """Options of a student and a teacher that cost next to nothing."""
    return [
        f"--config={REPOSITORY / 'configs' / 'interleaved.yaml'}",
        f"--model.teacher.source={teacher}",
        "--model.teacher.taps=[2,4]",
        "--model.student.hidden_size=16",
        "--model.student.intermediate_size=32",
        "--model.student.num_attention_heads=2",
        "--growth.depths=[2,4]",
        f"--data.source.init_args.root={SPEECH}",
        "--data.batch_seconds=8",
        f"--data.max_seconds={MAX_SECONDS}",
        "--data.crop=fixed",
        "--data.num_workers=0",
        *more,
    ]


def cache(output: Path, teacher: Path, *more: str) -> int:
    """Run the cache command and return its exit status."""
    return main(["cache", *settings(teacher, f"--output={output}", *more)])


def fit(directory: Path, teacher: Path, *more: str) -> int:
    """Train for four steps in two stages and return the exit status."""
    return main(fit_words(directory, teacher, *more))


def fit_words(directory: Path, teacher: Path, *more: str) -> list[str]:
    """Return the words of the command that `fit` gives."""
    logger = json.dumps([{"class_path": "MetricsFile", "init_args": {"save_dir": "."}}])
    trainer = [
        f"--trainer.default_root_dir={directory}",
        "--trainer.max_steps=4",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=2",
        f"--trainer.logger={logger}",
    ]
    return ["fit", *settings(teacher, *trainer, *more)]


def losses(directory: Path) -> dict[str, list[float]]:
    """Return what a run has logged of its losses, by their names."""
    with (directory / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if "loss" in name]
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


def stopping_at(call: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same work that tells its own process to stop when it is called so often."""
    calls: list[None] = []

    def stopping(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever it is of
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(*arguments, **named)

    return stopping

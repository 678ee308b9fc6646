"""SUPERB's jobs by the command line, in a few steps on small sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interstack.cli import main

SMALL = {
    "pr": ["batch_size=4", "runner.gradient_accumulate_steps=1"],
    "asr": ["datarc.batch_size=4", "dim=[16,16]", "project_dim=16"],
    "sf": ["batch_size=4", "dim=[16,16]", "project_dim=16"],
    "ks": ["batch_size=8"],
    "sid": ["train_batch_size=4", "runner.gradient_accumulate_steps=1"],
    "ic": ["train_batch_size=4"],
    "er": ["train_batch_size=4", "runner.gradient_accumulate_steps=1"],
    "asv": ["train_batch_size=4", "runner.gradient_accumulate_steps=1"],
    "sd": ["train_batchsize=2", "hidden_size=16", "runner.gradient_accumulate_steps=1"],
    "qbe": [],
}
"""What of each protocol is too large for a test."""


def superb(
    upstream: Path | str,
    data_root: Path,
    output: Path,
    *tasks: str,
    steps: int = 4,
    changes: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
) -> int:
    """Run the command and return its exit status."""
    few = [f"runner.total_steps={steps}", "runner.eval_step=2", "runner.save_step=1"]
    settings = [
        f"{task}.{change}"
        for task in tasks
        if task in SMALL
        for change in (*SMALL[task], *(few if task != "qbe" else ()))
    ]
    words = ["--upstream", str(upstream), "--tasks", *tasks, "--data-root", str(data_root)]
    words += ["--output", str(output)]
    if "--table" not in more:  # which runs no job
        words += ["--num-workers", "0", "--device", "cpu"]
    if settings or changes:
        words += ["--set", *settings, *changes]
    return main(["superb", *words, *more])


def job_directory(output: Path, task: str, part: str = "seed0") -> Path:
    """Return the directory of the only upstream's job."""
    (found,) = output.glob(f"*/{task}/{part}")
    return found


def metrics(output: Path, task: str, part: str = "seed0") -> dict[str, Any]:
    """Return what a job has found."""
    found: dict[str, Any] = json.loads(
        (job_directory(output, task, part) / "result.json").read_text()
    )
    return found["metrics"]

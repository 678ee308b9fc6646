"""Twenty steps of the shipped demo give the losses that they gave when it was released."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from interstack.cli import main

REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_name("golden_trace.json")


def trace(directory: Path) -> list[float]:
    """Train the embedded default for 20 steps in 4 stages and return each step's loss."""
    words = ["fit", f"--config={REPOSITORY / 'configs' / 'interleaved.yaml'}"]
    words += [f"--trainer.default_root_dir={directory}", "--trainer.max_steps=20"]
    words += ["--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=1"]
    words += ["--data.num_workers=0"]
    csv_alone = {"class_path": "MetricsFile", "init_args": {"save_dir": "."}}
    words += [f"--trainer.logger={json.dumps([csv_alone])}"]
    assert main(words) == 0
    with (directory / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_the_loss_trace_is_the_golden_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 on a CPU; other processors and thread counts round differently, hence 2e-3."""
    monkeypatch.chdir(REPOSITORY)  # the configuration names assets/ from there
    losses = trace(tmp_path / "run")
    golden = json.loads(GOLDEN.read_text())
    assert len(losses) == 20
    assert losses == pytest.approx(golden, rel=2e-3)

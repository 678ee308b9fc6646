"""Weights & Biases offline: everything is there, also where the run was cut."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from interstack.distillation.module import Distillation
from interstack.tracking.lineage import LAYER_COLUMNS
from interstack.tracking.metrics import AXES
from tests.target_cache.cached_runs import fit, fit_words, stopping_at
from tests.tracking.logged_runs import LAYERS, LOGGED, SCALARS, of_kind
from tests.tracking.offline_wandb import Offline


def test_weights_and_biases_offline_has_every_key_table_and_picture(logged_run: Path) -> None:
    """Read back from the file that is synced later: it is whole, and its media are there."""
    offline = Offline(logged_run)
    assert offline.exit_code == 0
    assert {*AXES, *SCALARS, *LAYERS[4], "trainer/global_step"} <= set(offline.defined)
    assert {key for row in offline.rows for key in row} >= {*AXES, *SCALARS, *LAYERS[4]}
    (growth,) = of_kind(logged_run, "growth")
    lineage = offline.table("growth/lineage_4")
    rows = growth["layers"]
    assert lineage == [{column: row[column] for column in LAYER_COLUMNS} for row in rows]
    summary = offline.table("stages/summary")
    stages = of_kind(logged_run, "stage")
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


def test_a_resumed_offline_run_holds_its_beginning_too(
    teacher_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part takes the place of the earlier one when it is synced, and has everything once."""
    directory = tmp_path / "cut"
    with monkeypatch.context() as patched:
        step = stopping_at(19, Distillation.training_step)
        patched.setattr(Distillation, "training_step", step)
        assert fit(directory, teacher_directory, *LOGGED) == 75
    time.sleep(1.1)  # parts are named by the second
    assert fit(directory, teacher_directory, *LOGGED, "--ckpt_path=last") == 0
    first, second = Offline(directory, 0), Offline(directory, 1)
    assert (first.exit_code, second.exit_code) == (75, 0)
    losses = {event["step"]: event["train/loss"] for event in of_kind(directory, "point")}
    logged = [row for row in second.rows if "train/loss" in row]
    assert [row["trainer/global_step"] + 1 for row in logged] == list(losses)
    for row, loss in zip(logged, losses.values(), strict=True):
        assert row["train/loss"] == pytest.approx(loss)
        assert row.keys() >= set(AXES)
    keys = [key for row in second.rows for key in row]
    for name in ("growth/lineage_4", "growth/validation_after", "val/loss"):
        assert keys.count(name) == 1
    assert [row["depth"] for row in second.table("stages/summary")] == [2, 4]
    assert len(second.media("similarity/layers")) == 2
    assert len(first.alerts) == 1
    assert second.alerts == []


def test_without_an_account_the_error_has_the_fix(teacher_directory: Path, tmp_path: Path) -> None:
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
    message = r"^error: Weights & Biases: No API key.*offline: true"
    assert re.search(message, done.stderr, re.MULTILINE), done.stderr
    assert not (tmp_path / "run" / "events.jsonl").exists()

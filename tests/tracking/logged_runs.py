"""Runs that log all events, and their events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interstack.tracking.events import GROWTH_METRICS, read_events
from interstack.tracking.metrics import POINT_METRICS, layer_metrics, loss_metrics

LOGGERS = json.dumps(
    [
        {"class_path": "MetricsFile", "init_args": {"save_dir": "."}},
        {
            "class_path": "WandbLogger",
            "init_args": {"project": "interstack", "save_dir": ".", "offline": True},
        },
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": ".", "name": "board"}},
    ]
)
LAYERS = {2: layer_metrics((0, 1)), 4: layer_metrics((0, 0, 1, 1))}
"""Names of the gradients' norms at both depths."""
SCALARS = (*loss_metrics((2, 4)), *POINT_METRICS, *GROWTH_METRICS)
LONG = ("--trainer.max_steps=24", "--trainer.log_every_n_steps=2")
LOGGED = (*LONG, f"--trainer.logger={LOGGERS}", "--trainer.check_val_every_n_epoch=1")
"""Of a run of 24 steps that grows once, logged to metrics.csv, W&B offline and TensorBoard."""


def of_kind(directory: Path, kind: str) -> list[Any]:
    """Return a run's events of a kind."""
    return [event for event in read_events(directory) if event["kind"] == kind]

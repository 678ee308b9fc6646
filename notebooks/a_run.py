"""The run that the notebooks look at: what `make demo` has left, or else a minute of the same.

Importing this changes into the repository, where the configurations' paths begin.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from interstack.cli import main

ROOT = Path(__file__).absolute().parents[1]


def find_run() -> Path:
    """Return the run's directory, and train for a minute if there is none."""
    demo, quick = Path("runs/interleaved"), Path("runs/quick")
    for run in (demo, quick):
        if (run / "student").is_dir():
            return run
    configs = ["--config", "configs/interleaved.yaml", "--config", "configs/scales/quick.yaml"]
    if main(["fit", *configs, "--trainer.logger", "MetricsFile"]) != 0:
        raise SystemExit("the run has failed; its messages are above")
    return quick


def _without_bars() -> None:
    """Keep progress bars of seconds, and the advice to install widgets for them, out of cells."""
    warnings.filterwarnings("ignore", message="IProgress not found")
    from transformers.utils import logging

    logging.disable_progress_bar()


os.chdir(ROOT)
_without_bars()

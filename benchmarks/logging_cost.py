"""Times what a run's logging takes of its steps; writes a record.

    python -m benchmarks.logging_cost [--repetitions N] [--steps N]

Runs the embedded default with the loggers of its configuration (metrics.csv, and Weights & Biases
offline), and adds up what is spent within them, within the dashboard and the hooks by which it
takes a step apart, and within Lightning's own keeping of what is logged.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import lightning as L
import torch
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector

from benchmarks.options import add_output
from benchmarks.records import write_record
from benchmarks.table import logging_table
from interstack.cli import main as interstack
from interstack.tracking.dashboard import Dashboard
from interstack.tracking.step_timer import StepClock
from interstack.utils.environment import describe_environment

_ROOT: Final = Path(__file__).parents[1]
_IN_STEPS: Final = (
    (Dashboard, "on_train_batch_start"),
    (Dashboard, "on_before_backward"),
    (Dashboard, "on_after_backward"),
    (Dashboard, "on_before_optimizer_step"),
    (Dashboard, "on_train_batch_end"),
    (StepClock, "mark"),
    (L.LightningModule, "log"),
    (L.LightningModule, "log_dict"),
    (_LoggerConnector, "log_metrics"),
)
_BETWEEN_STAGES: Final = (
    (Dashboard, "on_growth_start"),
    (Dashboard, "on_growth_end"),
    (Dashboard, "on_train_end"),
)


class LoggingCost(NamedTuple):
    """What logging took of a run.

    Attributes:
        steps: Optimizer steps.
        stages: Stages that ended.
        training_seconds: Of all steps.
        step_seconds: Of these what logging took, by what was called.
        stage_seconds: What the ends of stages took: similarity of layers, tables, pictures.
    """

    steps: int
    stages: int
    training_seconds: float
    step_seconds: Mapping[str, float]
    stage_seconds: Mapping[str, float]


def main(arguments: Sequence[str]) -> int:
    """Measure, write the record and print what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logging_cost", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    add_output(parser)
    options = parser.parse_args(arguments)
    if options.repetitions < 1:
        parser.error(f"--repetitions {options.repetitions} has to be 1 or more")
    with tempfile.TemporaryDirectory() as directory:
        runs = []
        for number in range(options.repetitions):
            # a process of its own, whose decoding workers begin as a run's do
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as fresh:
                run = fresh.submit(measure, Path(directory) / str(number), options.steps)
                runs.append(run.result())
    record: dict[str, Any] = {
        "command": "python -m benchmarks.logging_cost "
        f"--repetitions {options.repetitions} --steps {options.steps}",
        "surroundings": describe_environment(torch.device("cpu"), "32-true"),
        "runs": [run._asdict() for run in runs],
    }
    path = write_record(options.output, "logging", record)
    print("\n".join(logging_table(record)))
    print(f"the record is {path.name} in {path.parent}")
    return 0


def measure(directory: Path, steps: int) -> LoggingCost:
    """Run the embedded default and add up what its logging takes.

    Args:
        directory: Of the run.
        steps: Optimizer steps.
    """
    steps_timed, stages_timed = _timed(_IN_STEPS, warms_up=True), _timed(_BETWEEN_STAGES)
    with steps_timed as in_steps, stages_timed as between_stages:
        words = [f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={directory}"]
        with chdir(_ROOT):  # where the configuration's paths begin
            status = interstack(["fit", "--config=configs/interleaved.yaml", *words])
        if status != 0:
            raise SystemExit("the run has failed; its messages are above")
    stages = json.loads((directory / "stages.json").read_text())["stages"]
    seconds = sum(stage["training_seconds"] for stage in stages)
    return LoggingCost(steps, len(stages), seconds, dict(in_steps), dict(between_stages))


@contextmanager
def _timed(places: Sequence[tuple[type, str]], *, warms_up: bool = False) -> Iterator[Counter[str]]:
    """Add up the time within functions; what one calls counts as its own.

    Args:
        places: Classes and names.
        warms_up: Leave out the first call of each: it imports, and builds what the others use.
    """
    spent: Counter[str] = Counter()
    known: set[str] = set()
    within = 0

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*words: Any, **named: Any) -> Any:  # noqa: ANN401, whatever it is of
            nonlocal within
            begun, within = time.perf_counter(), within + 1
            try:
                return work(*words, **named)
            finally:
                within -= 1
                if not within and (name in known or not warms_up):
                    spent[name] += time.perf_counter() - begun
                known.add(name)

        return measured

    patches = [
        patch.object(of, name, timed(f"{of.__name__}.{name}", getattr(of, name)))
        for of, name in places
    ]
    for each in patches:
        each.start()
    try:
        yield spent
    finally:
        for each in patches:
            each.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

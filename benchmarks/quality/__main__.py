"""What speed costs in quality: front end own, copied or shared, targets live or cached.

    python -m benchmarks.quality --corpus DIR --caches DIR --output RECORD

Every arm distils the embedded teacher by `configs/interleaved.yaml` on a whole corpus, several
seeds each: first all arms for the same number of optimizer steps, then all for as much wall-clock
as the arm `shared` took (medians of the first runs' own training time). Judged are the validation
loss against the live teacher, over the whole validation split, and the linear phone probe.

RECORD is to be a new `benchmarks/records/quality-NAME.json`. DIR of `--caches` holds the
directories `float16` and `int8`, made by

    python -m interstack.cli cache --config configs/interleaved.yaml --data.source.root CORPUS \
        --data.crop fixed --dtype float16 --output CACHES/float16
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.quality.worker import RunPlan, RunResult
from interstack.utils.atomic import write_whole
from interstack.utils.environment import describe_environment

ARMS = {
    "own": ("own", None),
    "copy": ("copy", None),
    "shared": ("shared", None),
    "shared, cache float16": ("shared", "float16"),
    "shared, cache int8": ("shared", "int8"),
}
"""Front end and cache of each arm."""
YARDSTICK = "shared"


def main() -> None:
    """Run all arms and seeds, two processes of one thread side by side, and write the results."""
    options = _options()
    seeds = range(1, options.seeds + 1)
    results: list[RunResult] = []
    equal_steps = [_plan(arm, seed, options.steps, "steps") for seed in seeds for arm in ARMS]
    _run_all(equal_steps, options, results)
    seconds = {
        arm: median(each.training_seconds for each in results if each.plan.arm == arm)
        for arm in ARMS
    }
    equal_clock = [
        _plan(arm, seed, round(options.steps * seconds[YARDSTICK] / seconds[arm]), "wall-clock")
        for seed in seeds
        for arm in ARMS
        if arm != YARDSTICK
    ]
    _run_all(equal_clock, options, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.quality")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--caches", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def _plan(arm: str, seed: int, steps: int, equal: str) -> RunPlan:
    front_end, cache = ARMS[arm]
    return RunPlan(arm, equal, seed, steps, front_end, cache)


def _run_all(plans: list[RunPlan], options: argparse.Namespace, results: list[RunResult]) -> None:
    with ThreadPoolExecutor(options.processes) as pool:
        for result in pool.map(lambda plan: _run(plan, options), plans):
            results.append(result)
            print(result, flush=True)
            record = {
                "command": _command(options),
                "surroundings": describe_environment(torch.device("cpu"), "32-true")
                | {"threads": "1"},
                "results": [each.to_primitives() for each in results],
            }
            write_whole(options.output, (json.dumps(record, indent=1) + "\n").encode())


def _command(options: argparse.Namespace) -> str:
    """Return the command line without the places on this machine."""
    return (
        f"python -m benchmarks.quality --steps {options.steps} --seeds {options.seeds} "
        f"--processes {options.processes} --corpus … --caches … --output …"
    )


def _run(plan: RunPlan, options: argparse.Namespace) -> RunResult:
    """Train and judge in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        order: dict[str, Any] = plan._asdict() | {
            "corpus": str(options.corpus),
            "caches": str(options.caches),
            "directory": directory,
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.quality.worker", json.dumps(order)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return RunResult.from_primitives(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()

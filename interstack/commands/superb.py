"""superb: upstreams on SUPERB's tasks, beside the published rows."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from interstack.commands.options import check_flags, key_and_value
from interstack.data.skips import OnCorrupt
from interstack.errors import ConfigurationError, DataError
from interstack.evaluation.superb.job import Job, check_job, run_job
from interstack.evaluation.superb.results import (
    TABLE_FILE,
    collect,
    results_table,
    write_results,
)
from interstack.evaluation.superb.tasks import (
    TASKS,
    Task,
    limit_workers,
    presets,
    protocol,
    tasks_named,
)
from interstack.evaluation.superb.upstream import FBANK, Upstream
from interstack.models.precision import device_format
from interstack.settings import check_effect
from interstack.target_cache.partition import Partition
from interstack.utils.console import table_console
from interstack.utils.disk import deferred_writes, write_errors
from interstack.utils.environment import choose_device

log = logging.getLogger(__name__)


def run_superb(arguments: Sequence[str]) -> None:
    """Parse the command's options, train what is not trained yet, print the table.

    Args:
        arguments: The words after ``superb``.

    Raises:
        InterstackError: If data, an upstream or a setting can't be used.
    """
    options = _parser().parse_args(arguments)
    tasks = tasks_named(options.tasks)
    workers = options.num_workers
    if options.seeds < 1 or (workers is not None and workers < 0):
        raise ConfigurationError("superb needs --seeds of 1 at least, and --num-workers of 0")
    _check_effects(options, tasks)
    with deferred_writes():
        _run(options, tasks)


def _run(options: argparse.Namespace, tasks: Sequence[Task]) -> None:
    """Train what is not trained yet, and print the table."""
    jobs = _jobs(options)
    if not options.table:
        _check(jobs)
        partition = Partition.of_array(options.share)
        device = choose_device(options.device)
        for number, job in enumerate(jobs):
            if number % partition.total == partition.index and job.result() is None:
                run_job(job, device, precision_check=not options.no_precision_check)
                log.info("%s is done: %s", job.name, _found(job))
    results = [result for job in jobs if (result := job.result()) is not None]
    console = table_console()
    console.print(results_table(collect(results), tasks))
    missing = len(jobs) - len(results)
    if missing:
        console.print(f"{missing} of {len(jobs)} jobs are not done yet")
    if results:
        fix = "free space, then give the same command again, which only makes the table"
        with write_errors(options.output / TABLE_FILE, fix):
            write_results(options.output, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interstack superb",
        description="Judge frozen upstreams on SUPERB with s3prl's own downstream models.",
    )
    parser.add_argument(
        "--upstream",
        nargs="+",
        required=True,
        help="exports, directories or hub ids of other speech encoders, or fbank",
    )
    parser.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help=f"of {' '.join(TASKS)}"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        required=True,
        help="folder of all corpora; missing ones are named",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/superb"), help="for all jobs")
    parser.add_argument("--seeds", type=int, default=1, help="jobs for each task (default 1)")
    parser.add_argument(
        "--preset", default="superb", help=f"whose settings: {', '.join(presets())}"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="[TASK.]KEY=VALUE",
        help="other settings, as sid.optimizer.lr=1e-3 or runner.total_steps=100",
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        help="decoding processes a job at most (default: one less than there are processors)",
    )
    parser.add_argument(
        "--share",
        help="this process' jobs, as 3/8 (from 0/8 to 7/8); default: SLURM's array, or all",
    )
    parser.add_argument(
        "--on-corrupt",
        choices=get_args(OnCorrupt),
        default="raise",
        help="raise: stop at audio that can't be decoded, naming it; skip: leave it out, name the "
        "first and count them (default raise)",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--no-precision-check",
        action="store_true",
        help="do not compare an upstream's first batch with float32, where it computes in another "
        "number format",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="only print what is there; --share, --device, --num-workers and --no-precision-check "
        "belong to jobs",
    )
    return parser


def _jobs(options: argparse.Namespace) -> list[Job]:
    """Return all jobs, in the order in which they are divided among processes."""
    changes = dict(_change(text) for text in options.set)
    workers = options.num_workers
    most = max(1, (os.cpu_count() or 2) - 1) if workers is None else workers
    upstreams = [Upstream.find(name) for name in dict.fromkeys(options.upstream)]
    jobs = []
    for upstream in upstreams:
        for task in tasks_named(options.tasks):
            config = protocol(task, options.preset, changes)
            limit_workers(config, most)
            jobs += [
                Job(
                    *(upstream, task, variant, seed, config, options.data_root, options.output),
                    on_corrupt=options.on_corrupt,
                )
                for seed in range(options.seeds)
                for variant in task.variants
            ]
    return jobs


def _check_effects(options: argparse.Namespace, tasks: Sequence[Task]) -> None:
    """Refuse options that have no effect on the tasks that are named, or on a mere table."""
    names = [task.name for task in tasks]
    here = f"with --tasks {' '.join(names)}"
    for key, _ in map(_change, options.set):
        owner = key.partition(".")[0]
        if owner in TASKS and owner not in names:
            raise ConfigurationError(
                f"--set {key} has no effect {here}: leave it out, or add {owner} to --tasks"
            )
    plain = [protocol(task, "superb", {}) for task in tasks]
    if plain == [protocol(task, options.preset, {}) for task in tasks]:
        check_effect("--preset", options.preset, "superb", here, "name a task that it changes")
    if options.no_precision_check and not options.table:
        device, flag = choose_device(options.device), "--no-precision-check"
        if device_format(device) == "float32":
            check_effect(flag, True, False, f"on {device}, which computes in float32")
        if set(options.upstream) == {FBANK}:
            check_effect(flag, True, False, f"with --upstream {FBANK}, which has no weights")
    if options.table:
        defaults = {
            "share": None,
            "device": "auto",
            "num_workers": None,
            "on_corrupt": "raise",
            "no_precision_check": False,
        }
        check_flags(options, defaults, "with --table", "leave --table out")


def _change(text: str) -> tuple[str, Any]:
    key, value = key_and_value("--set", text, "runner.total_steps=100")
    return key, yaml.safe_load(value)


def _check(jobs: Sequence[Job]) -> None:
    """Raise all that would end a job early, before the first job starts."""
    problems = []
    for job in jobs:
        try:
            check_job(job)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))


def _found(job: Job) -> str:
    result = job.result() or {}
    figures = [f"{key} {value:.2f}" for key, value in result.get("metrics", {}).items()]
    return ", ".join(figures) or f"its files are in {job.directory}"

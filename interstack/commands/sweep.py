"""sweep: recipes compared, as runs of `fit` in a queue."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shlex
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import yaml

from interstack.commands.options import check_flags, key_and_value
from interstack.commands.report import write_report
from interstack.commands.sweep_plan import SweepPlan, plan_sweep
from interstack.errors import ConfigurationError, InterstackError, RunInterrupted, first_line
from interstack.report.run import Run, read_runs
from interstack.sweep.queue import Outcome, Queue, machine_environments
from interstack.sweep.records import Job, is_finished, read_record
from interstack.sweep.results import (
    VALIDATION_LOSS,
    RunResult,
    results_table,
    rows_of,
    run_result,
    write_results,
)
from interstack.sweep.study import PlannedRun, Study
from interstack.target_cache.format import CacheDtype
from interstack.target_cache.partition import Partition
from interstack.utils.console import table_console
from interstack.utils.disk import write_errors

log = logging.getLogger(__name__)

REPORT_FILE: Final = "report.html"
_OF_A_STUDY: Final = ("config", "arms", "seeds", "values", "set", "cache", "baseline")


def run_sweep(arguments: Sequence[str]) -> None:
    """Parse the command's options, run what is not finished, print the table.

    Args:
        arguments: The words after ``sweep``.

    Raises:
        ConfigurationError: If the study or one of its runs is refused.
        InterstackError: If a run has failed; the others are finished then.
        RunInterrupted: After a signal, with every run saved.
    """
    options = _parser().parse_args(arguments)
    if options.jobs < 1:
        raise ConfigurationError(f"--jobs is {options.jobs}: give 1 or more")
    if options.table:
        defaults = {"partition": None, "jobs": 1, "dry_run": False}
        check_flags(options, defaults, "with --table", "leave --table out")
    part = Partition.of_array(options.partition, "--partition")
    study = _study(options)
    if study.baseline is not None and importlib.util.find_spec("scipy") is None:
        raise ConfigurationError(
            f"baseline is {study.baseline}, but Welch's test needs scipy, which is not installed: "
            "pip install 'interstack[sweep]', or leave baseline out"
        )
    plan = plan_sweep(study, options.output)
    own = [each for number, each in enumerate(plan.runs) if number % part.total == part.index]
    if options.dry_run:
        _print_plan(own, plan.caches)
        return
    outcome = Outcome()
    if not options.table:
        needed = {job.needs for _, job in own}
        jobs = [*(job for name, job in plan.caches.items() if name in needed)]
        outcome = Queue([*jobs, *(job for _, job in own)], machine_environments(options.jobs)).run()
    _show(plan, options.output, options.metric)
    _report_outcome(outcome)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interstack sweep",
        description="Compare recipes: every arm with every seed, and every value of a grid, is an "
        "ordinary run of fit. Stopped or killed, the same command resumes all of them.",
    )
    parser.add_argument("--study", help="a YAML file with all of the study, in place of the next")
    parser.add_argument("--config", nargs="+", help="configuration files that all runs begin with")
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="[NAME=]FILE[,FILE]",
        help="overlays, each an arm of its file's name; NAME= alone is the configuration itself",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="seed_everything of each run")
    parser.add_argument(
        "--values",
        nargs="+",
        metavar="KEY=VALUE,VALUE",
        help="a grid for every arm, as model.optimizer.learning_rate=1e-3,2e-3",
    )
    parser.add_argument(
        "--set", nargs="+", metavar="KEY=VALUE", help="settings of all runs, before the arms'"
    )
    parser.add_argument(
        "--cache",
        choices=get_args(CacheDtype),
        help="compute the teacher's targets once, in this number format, for all arms that can "
        "use them",
    )
    parser.add_argument("--baseline", metavar="ARM", help="what the other arms are tested against")
    parser.add_argument("--output", type=Path, required=True, help="directory of the sweep")
    parser.add_argument(
        "--metric",
        default=VALIDATION_LOSS,
        help="of validations, compared at the end of runs (default val/loss)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time (default 1); cores and GPUs are divided among them",
    )
    parser.add_argument(
        "--partition",
        metavar="INDEX/COUNT",
        help="this process' runs, from 0/8 to 7/8; default: the index in a SLURM array, or all",
    )
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="check everything, and list the runs"
    )
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser


def _study(options: argparse.Namespace) -> Study:
    """Return the study of a file, or of the options.

    Raises:
        ConfigurationError: With one line for each mistake.
    """
    if options.study is None:
        return Study.from_primitives(_content(options), "sweep")
    check_flags(options, dict.fromkeys(_OF_A_STUDY), "with --study", "write it there")
    try:
        content = yaml.safe_load(Path(options.study).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"--study {options.study} can't be read ({first_line(error)}): give another file"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"--study {options.study} is no YAML ({' '.join(str(error).split())}): correct it there"
        ) from error
    return Study.from_primitives(content, options.study)


def _content(options: argparse.Namespace) -> dict[str, Any]:
    """Return the content of a study file for the options."""
    content: dict[str, Any] = {"config": options.config, "seeds": options.seeds}
    if options.arms is not None:
        arms: dict[str, list[str]] = {}
        for text in options.arms:
            name, equals, files = text.partition("=")
            name, files = (name, files) if equals else (Path(text).stem, text)
            if name in arms:
                raise ConfigurationError(f"--arms has {name} twice: give NAME=FILE for one of them")
            arms[name] = [file for file in files.split(",") if file]
        content["arms"] = arms
    content["values"] = {
        key: _loaded(f"[{text}]", f"--values {key}") for key, text in _pairs("values", options)
    }
    content["settings"] = {
        key: _loaded(text, f"--set {key}") for key, text in _pairs("set", options)
    }
    return content | {"cache": options.cache, "baseline": options.baseline}


def _pairs(name: str, options: argparse.Namespace) -> Iterable[tuple[str, str]]:
    for text in getattr(options, name) or ():
        yield key_and_value(f"--{name}", text, "trainer.max_steps=100")


def _loaded(text: str, option: str) -> Any:  # noqa: ANN401, any setting's value
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{option} is {text}, which is no value: correct it") from error


def _print_plan(runs: Sequence[tuple[PlannedRun, Job]], caches: Mapping[str, Job]) -> None:
    """Print every job's status and command."""
    needed = {job.needs for _, job in runs}
    jobs = [*(caches[name] for name in caches if name in needed), *(job for _, job in runs)]
    for job in jobs:
        record = read_record(job.record)
        status = "new" if record is None else record.status
        print(
            f"{job.name} ({status}): {shlex.join(['python', '-m', 'interstack.cli', *job.words])}"
        )
    print(f"{len(runs)} runs")


def _show(plan: SweepPlan, output: Path, metric: str) -> None:
    """Print and write the results of finished runs."""
    finished = [(run, job) for run, job in plan.runs if is_finished(job.record)]
    results: list[RunResult] = []
    records: list[Run] = []
    for run, job in finished:
        try:
            [record] = read_runs([job.directory])
        except ConfigurationError as error:  # the others are shown
            log.warning("%s is not in the table: %s", run.name, error)
            continue
        records.append(record)
        results.append(run_result(run, record, metric))
        if results[-1].metric is None:
            log.warning("%s has no %s: enable its validation", run.name, metric)
    baseline = plan.study.baseline
    groups = {
        run.group: None if baseline is None else plan.study.group_of(baseline, run)
        for run, _ in plan.runs
    }
    rows = rows_of(groups, results)
    console = table_console()
    console.print(results_table(rows, metric, baseline))
    missing = len(plan.runs) - len(finished)
    if missing:
        console.print(f"{missing} of {len(plan.runs)} runs are not finished")
    if not results:
        return
    fix = "free space, then give the same command again, which only makes the table"
    with write_errors(output, fix):
        write_results(output, rows, results, metric)
    write_report(records, None, output / REPORT_FILE, "--output")
    console.print(f"the report is in {output / REPORT_FILE}", soft_wrap=True)


def _report_outcome(outcome: Outcome) -> None:
    """Raise an error where a run has not come to its end."""
    if outcome.failed:
        lines = [f"{name} has failed: {reason}" for name, reason in outcome.failed.items()]
        raise InterstackError(
            "\n".join([*lines, "correct that, then give the same command again: it resumes these"])
        )
    if outcome.interrupted:
        raise RunInterrupted(
            f"{', '.join(sorted(outcome.interrupted))} stopped at a signal: the same command "
            "resumes these",
            signal.SIGTERM,
        )

"""Run what the study still lacks, judge every finished run and keep its record.

    python -m benchmarks.study.run --output runs/study --probe-corpus CORPUS [--jobs 2]

A run that has a record is never run again, whichever machine made it, so that a study may take many
sittings on machines that forget their disks. Killed anywhere, the same command continues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from benchmarks.study.judge import FILES, judge
from benchmarks.study.records import RECORDS
from interstack.commands.sweep_plan import plan_sweep
from interstack.errors import ConfigurationError, InterstackError, RunInterrupted
from interstack.sweep.queue import Queue, machine_environments
from interstack.sweep.records import Job
from interstack.sweep.study import PlannedRun, Study

ORDER = ("a_operators", "b_rates", "a_policies", "a_seeds", "a_whisper")
"""The study files in the order in which their answers are wanted."""


def missing_runs(
    study: Study, output: Path, records: Path
) -> Iterator[tuple[PlannedRun, Job, Sequence[Job]]]:
    """Yield the runs of a study that have no record, with the job of each and the caches it needs.

    Raises:
        ConfigurationError: If a run can't be started as it is.
    """
    plan = plan_sweep(study, output)
    for run, job in plan.runs:
        if not (records / f"{run.name}.json").exists():
            yield run, job, [plan.caches[job.needs]] if job.needs else []


def run_missing(name: str, options: argparse.Namespace) -> None:
    """Bring one study file's runs to their records, as many at a time as there are jobs.

    Raises:
        InterstackError: If a run fails or is stopped; those beside it are finished and judged.
        RunInterrupted: After a signal, with every run saved.
    """
    path = options.files / f"{name}.yaml"
    study = Study.from_primitives(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    missing = list(missing_runs(study, options.output, options.records))
    if options.dry_run:
        print("\n".join(f"{name}: {run.name}" for run, _, _ in missing))
        return
    for start in range(0, len(missing), options.jobs):
        group = missing[start : start + options.jobs]
        jobs = {job.name: job for _, own, needed in group for job in (*needed, own)}
        outcome = Queue(list(jobs.values()), machine_environments(options.jobs)).run()
        if outcome.interrupted:  # though this process got no signal
            names = ", ".join(sorted(outcome.interrupted))
            raise InterstackError(f"{names} stopped at a signal: the same command resumes")
        for run, job, _ in group:
            if job.name not in outcome.failed:
                record = judge(name, run, options.output, options.probe_corpus)
                record.write(options.records)
                print(f"{run.name}: loss {record.judged['loss']}, phones {record.phone_accuracy}")
        if outcome.failed:
            raise InterstackError("\n".join(f"{key}: {why}" for key, why in outcome.failed.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and return the process' exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.study.run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="directory of runs and caches")
    parser.add_argument("--probe-corpus", type=Path, required=True)
    parser.add_argument("--studies", nargs="+", default=list(ORDER), help="names of study files")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--files", type=Path, default=FILES)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--dry-run", action="store_true", help="only list what is missing")
    options = parser.parse_args(arguments)
    try:
        for name in options.studies:
            if not (options.files / f"{name}.yaml").is_file():
                raise ConfigurationError(f"--studies has {name}, but there is no {name}.yaml")
            run_missing(name, options)
    except RunInterrupted as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except InterstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

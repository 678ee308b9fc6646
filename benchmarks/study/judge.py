"""Judge finished runs of the study and keep their records; what has a record is left as it is.

    python -m benchmarks.study.judge --output runs/study --probe-corpus CORPUS

A run is judged by its student at the end: losses on the whole validation split against the live
teacher, and the linear phone probe with one seed on CORPUS, a folder with phone alignments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml

from benchmarks.study.records import RECORDS, RunRecord, curves_of
from interstack.sweep.records import is_finished
from interstack.sweep.study import PlannedRun, Study
from interstack.utils.environment import describe_environment

FILES = Path(__file__).with_name("files")


def finished_runs(output: Path, files: Path = FILES) -> Iterator[tuple[str, PlannedRun]]:
    """Yield study file and run of all that are finished, as far as the files still have them."""
    for path in sorted(files.glob("*.yaml")):
        study = Study.from_primitives(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        for run in study.runs():
            if is_finished(output / "runs" / f"{run.name}.json"):
                yield path.stem, run


def judge(study: str, run: PlannedRun, output: Path, probe_corpus: Path) -> RunRecord:
    """Judge one run.

    Args:
        study: Name of its study file.
        run: The run, finished.
        output: Directory of the sweep.
        probe_corpus: Folder with LibriSpeech's splits and phone alignments.
    """
    from interstack.commands.lightning import run_lightning
    from interstack.evaluation.phone_probe import run_phone_probe

    directory = output / "runs" / run.name
    checkpoint = f"--ckpt_path={directory}/checkpoints/last.ckpt"
    settings = [f"--config={directory}/config.yaml", "--data.target_cache=null", checkpoint]
    done = run_lightning(["validate", *settings, "--trainer.logger=false"])
    losses = {
        name.removeprefix("val/"): round(float(value), 5)
        for name, value in done.trainer.callback_metrics.items()
        if name.startswith("val/")
    }
    probed = run_phone_probe(probe_corpus, [f"{directory}/student"], seeds=1)
    stages = json.loads((directory / "stages.json").read_text(encoding="utf-8"))["stages"]
    return RunRecord(
        name=run.name,
        study=study,
        group=run.group,
        arm=run.arm,
        seed=run.seed,
        words=run.words,
        environment=describe_environment(torch.device("cpu"), "32-true"),
        **curves_of(directory / "events.jsonl"),
        judged=losses,
        phone_accuracy=round(probed.upstreams[0].score.test[0], 5),
        training_seconds=round(sum(stage["training_seconds"] for stage in stages), 1),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge what is finished and has no record."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.study.judge",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="directory of the sweep")
    parser.add_argument("--probe-corpus", type=Path, required=True)
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(arguments)
    for study, run in finished_runs(options.output):
        if not (options.records / f"{run.name}.json").exists():
            record = judge(study, run, options.output, options.probe_corpus)
            path = record.write(options.records)
            print(f"{path}: loss {record.judged['loss']}, phones {record.phone_accuracy}")


if __name__ == "__main__":
    main()

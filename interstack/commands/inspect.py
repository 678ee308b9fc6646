"""inspect: what models cost, beside each other."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from interstack.commands.options import choose_device
from interstack.errors import ConfigurationError, TeacherError
from interstack.evaluation.costs import costs_table, measure_costs
from interstack.export.huggingface import export_student, load_student
from interstack.export.provenance import teacher_of
from interstack.models.pretrained import Source
from interstack.utils.console import table_console
from interstack.utils.disk import check_output, write_errors, write_output
from interstack.utils.environment import surroundings

log = logging.getLogger(__name__)


def run_inspect(arguments: Sequence[str]) -> None:
    """Parse the command's options, measure, print.

    Args:
        arguments: The words after ``inspect``.

    Raises:
        InterstackError: If a model can't be found, loaded or written about.
    """
    parser = argparse.ArgumentParser(
        prog="interstack inspect",
        description="Parameters, GMACs and real-time factor of models on this machine.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="an export, another model's directory or hub id, a checkpoint or a run's directory; "
        "an export's teacher is measured too",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the utterance")
    parser.add_argument("--rounds", type=int, default=5, help="forward passes of each model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="what computes")
    parser.add_argument("--json", type=Path, help="file for everything")
    options = parser.parse_args(arguments)
    if options.seconds < 0.1 or options.rounds < 1:
        raise ConfigurationError("inspect needs --seconds of 0.1 at least, and --rounds of 1")
    device = choose_device(options.device)
    if options.json is not None:
        check_output(options.json, "--json")
    with tempfile.TemporaryDirectory() as scratch:
        models = list(dict(_models(options.models, Path(scratch))).items())
        costs = measure_costs(models, seconds=options.seconds, rounds=options.rounds, device=device)
    found = surroundings(device, "32-true")
    threads = "" if device.type == "cuda" else f", {found['threads']} threads"
    table_console().print(costs_table(costs, options.seconds, found["device"] + threads))
    if options.json is not None:
        report = {"surroundings": found, "models": [one.to_primitives() for one in costs]}
        write_output(options.json, json.dumps(report, indent=2).encode(), "--json")


def _models(names: Sequence[str], scratch: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each model, and where transformers can load it from."""
    teachers = []
    for number, name in enumerate(names):
        path = Path(name).expanduser()
        if path.suffix == ".ckpt" or (path / "checkpoints").is_dir():
            student, content = load_student(path)
            directory = scratch / str(number)
            with write_errors(directory, "free space there, or set TMPDIR to another directory"):
                export_student(student, directory)
            teachers.append(str(content["hyper_parameters"]["teacher"]["source"]))
            yield name, str(directory)
            continue
        yield name, name
        teacher = teacher_of(path)
        if teacher is not None:
            teachers.append(teacher)
    for teacher in teachers:
        try:
            Source(teacher).read_config()
        except TeacherError as error:
            log.warning("without the teacher: %s", error)
        else:
            yield teacher, teacher

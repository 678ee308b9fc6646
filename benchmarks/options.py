"""The command line of the bench."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import torch

from benchmarks.materials import Scale
from interstack.errors import ConfigurationError
from interstack.utils.compiling import check_can_compile

RECORDS: Final = Path(__file__).parent / "records"
"""The project's own records, from which the tables of docs/benchmarks.md are made."""
MEASUREMENTS: Final = Path(__file__).parents[1] / "runs" / "benchmarks"
"""Where a measurement goes that is none of these; git ignores it."""


@dataclass(frozen=True)
class Options:
    """What a run of the bench is told.

    Attributes:
        repetitions: Times that every step is timed.
        seconds: Of each utterance.
        utterances: Of a step.
        quick: Tiny models: whether the bench works, not how fast anything is.
        device: ``cpu`` or ``cuda``.
        precision: ``32`` or ``bf16``, of the student in every variant.
        compile: Also try compiled layers.
        peak_tflops: What the chip can do, dense in bfloat16; None: known by its name, or not.
        output: Directory for the record.
    """

    repetitions: int = 5
    seconds: float = 16.0
    utterances: int = 1
    quick: bool = False
    device: str = "cpu"
    precision: str = "32"
    compile: bool = False
    peak_tflops: float | None = None
    output: Path = MEASUREMENTS

    def __post_init__(self) -> None:
        for name in ("repetitions", "utterances"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"--{name} {getattr(self, name)} has to be 1 or more")
        if not 0.1 <= self.seconds <= 600:
            raise ConfigurationError(f"--seconds {self.seconds:g} has to lie in 0.1 to 600")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise ConfigurationError(f"--peak-tflops {self.peak_tflops:g} has to be above 0")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("--device cuda needs a GPU that torch can use: give cpu")
        if self.quick and self.output.resolve() == RECORDS.resolve():
            raise ConfigurationError(
                "--quick says nothing about speed and belongs to none of the project's records: "
                "leave --record out"
            )
        if self.compile:
            check_can_compile(self.device)

    @property
    def scale(self) -> Scale:
        """How much a step computes."""
        return Scale(self.quick, self.seconds, self.utterances)

    @property
    def command(self) -> str:
        """The command line that gives the same run; without the output, which names a place."""
        words = ["python -m benchmarks"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default or field.name == "output":
                continue
            flag = "--" + field.name.replace("_", "-")
            words.append(flag if value is True else f"{flag} {value}")
        return " ".join(words)


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        ConfigurationError: If an option can't be what it is; argparse itself ends the process where
            one is unknown or no number.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    defaults = Options()
    parser.add_argument("--repetitions", type=int, default=defaults.repetitions)
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="an utterance")
    parser.add_argument("--utterances", type=int, default=defaults.utterances, help="a step")
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the bench out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=defaults.device)
    parser.add_argument("--precision", choices=("32", "bf16"), default=defaults.precision)
    parser.add_argument("--compile", action="store_true", help="also time compiled layers")
    parser.add_argument("--peak-tflops", type=float, help="the chip's dense bfloat16 peak")
    add_output(parser)
    return Options(**vars(parser.parse_args(arguments)))


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a measurement goes, as ``output``.

    Only ``--record`` writes among the project's records, whose newest are in docs/benchmarks.md.
    """
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--output",
        type=Path,
        default=MEASUREMENTS,
        help="directory for the measurement (default runs/benchmarks)",
    )
    place.add_argument(
        "--record",
        dest="output",
        action="store_const",
        const=RECORDS,
        help="add it to the project's records; python -m benchmarks.table then brings the "
        "tables of docs/benchmarks.md up to date",
    )

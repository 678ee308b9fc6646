"""Times a step of every variant in turns, growth, and memory; writes a record.

    python -m benchmarks [--repetitions N] [--device cuda --precision bf16 --compile] ...

The record goes to `runs/benchmarks`; with `--record` to the project's own.

One process trains students of all variants and depths in turns, so that a machine's drift touches
them alike: a HuBERT-Base-sized teacher and the paper's student, with random weights, on noise. Only
memory is measured in processes of its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch

from benchmarks.growth_event import measure_growth
from benchmarks.materials import Materials
from benchmarks.memory import check_can_measure, measure_memory
from benchmarks.options import Options, parse
from benchmarks.records import BenchRecord, StepTimes, write_record
from benchmarks.steps import make_steps, time_in_turns
from benchmarks.table import bench_tables
from benchmarks.variants import DEPTHS, SHARED_CACHE_GROWTH, cells_of, variants
from interstack.errors import InterstackError
from interstack.utils.console import hush_lightning
from interstack.utils.environment import describe_environment

_PEAKS: Final = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0}
"""Dense bfloat16 TFLOP/s by the vendor's data sheets, by a part of the device's name."""


def main(arguments: Sequence[str]) -> int:
    """Run the bench and return the process' exit status."""
    try:
        options = parse(arguments)
        device = torch.device(options.device)
        check_can_measure(device)
        hush_lightning()
        with tempfile.TemporaryDirectory() as directory:
            record = run(options, device, Path(directory))
        path = write_record(options.output, "bench", record.to_primitives())
    except InterstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(bench_tables(record)))
    print(f"the record is {path.name} in {path.parent}")
    return 0


def run(options: Options, device: torch.device, directory: Path) -> BenchRecord:
    """Measure everything.

    Args:
        options: What was asked for.
        device: Where to compute.
        directory: For a teacher and caches.
    """
    materials = Materials(directory, options.scale, device)
    materials.make()
    compared = variants(bf16=options.precision == "bf16", compiled=options.compile)
    by_name = {variant.name: variant for variant in compared}
    cells = cells_of(compared)
    steps = make_steps(materials, cells)
    flops = []
    for number, step in enumerate(steps, start=1):
        flops.append(step.warm_up())
        _tell(f"warmed up {number}/{len(steps)}")
    seconds = time_in_turns(
        steps, options.repetitions, lambda done: _tell(f"timed {done}/{options.repetitions}")
    )
    del steps
    setting = by_name[SHARED_CACHE_GROWTH].setting
    growth = measure_growth(materials, setting, options.repetitions)
    memory = measure_memory(materials, setting, (DEPTHS[0], DEPTHS[-1]))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = next((peak for part, peak in _PEAKS.items() if part in name), None)
    return BenchRecord(
        options.command,
        describe_environment(device, options.precision),
        options.seconds * options.utterances,
        options.peak_tflops or known,
        [
            StepTimes(asdict(cell.setting), cell.depth, times, count)
            for cell, times, count in zip(cells, seconds, flops, strict=True)
        ],
        {each.name: [cells.index(cell) for cell in each.cells] for each in compared},
        growth,
        memory,
    )


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

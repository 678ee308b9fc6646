"""Times the optimizers' steps: AdamW's, Muon's, and its iteration in float32 and bfloat16.

    python -m benchmarks.optimizers [--width N --layers N] [--device cuda] [--record]

On the encoder layers of a student with random weights and gradients, in turns, so that a machine's
drift touches all alike. Muon iterates in whichever number format its device is faster in; this is
how that was measured.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.options import add_output
from benchmarks.records import Spread, write_record
from benchmarks.steps import time_in_turns, timed
from interstack.distillation.muon import newton_schulz_dtype, newton_schulz_flops, orthogonalise
from interstack.distillation.optimizer import OptimizerConfig, OptimizerKind, make_optimizer
from interstack.errors import InterstackError
from interstack.models.config import StudentConfig, student_hubert_config
from interstack.models.student import Student
from interstack.tracking.flops import layer_matrices
from interstack.utils.environment import describe_environment

KIND: Final = "optimizers"
_HEADS: Final = 64
"""Channels of an attention head."""
_PREFIX: Final = "model.encoder.layers."


def main(arguments: Sequence[str]) -> int:
    """Measure, write the record and print it as a table; return the process' exit status."""
    options = _parse(arguments)
    device = torch.device(options.device)
    try:
        record = measure(options.width, options.layers, options.repetitions, device)
        path = write_record(options.output, KIND, record)
    except InterstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(optimizer_table(record)))
    print(f"the record is {path.name} in {path.parent}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description=__doc__)
    parser.add_argument("--width", type=int, default=384, help="of the student's encoder")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    add_output(parser)
    options = parser.parse_args(arguments)
    for name in ("layers", "repetitions"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} has to be 1 or more")
    if options.width < 16 or options.width % 16:
        parser.error(f"--width {options.width} has to be a multiple of 16")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use: give cpu")
    return options


def measure(width: int, layers: int, repetitions: int, device: torch.device) -> dict[str, Any]:
    """Time everything so many times, after once to warm up.

    Args:
        width: Of the encoder; feed-forward networks are four times as wide.
        layers: Of the encoder.
        repetitions: How often.
        device: Where to compute.

    Returns:
        The record.
    """
    heads = max(1, width // _HEADS)
    config = StudentConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads if width % heads == 0 else 1,
    )
    torch.manual_seed(0)
    student = Student(student_hubert_config(config, layers), (layers,), width).to(device)
    for parameter in student.layers.parameters():
        parameter.grad = torch.randn_like(parameter)
    matrices = layer_matrices(student.layers)
    work: dict[str, Callable[[], object]] = {
        "AdamW's step": _step(student.layers, "adamw"),
        "Muon's step": _step(student.layers, "muon"),
        "Muon's iteration in float32": _iteration(matrices, torch.float32),
        "Muon's iteration in bfloat16": _iteration(matrices, torch.bfloat16),
    }
    steps = [_timer(each, device) for each in work.values()]
    time_in_turns(steps, 1, lambda _: None)
    seconds = time_in_turns(
        steps,
        repetitions,
        lambda done: print(f"timed {done}/{repetitions}", file=sys.stderr, flush=True),
    )
    return {
        "command": f"python -m benchmarks.optimizers --width {width} --layers {layers} "
        f"--repetitions {repetitions} --device {device.type}",
        "surroundings": describe_environment(device, "32-true"),
        "width": width,
        "layers": layers,
        "parameters": sum(each.numel() for each in student.layers.parameters()),
        "gigaflops": sum(newton_schulz_flops(*each.shape) for each in matrices) / 1e9,
        "muon_iterates_in": str(newton_schulz_dtype(device)).removeprefix("torch."),
        "seconds": dict(zip(work, seconds, strict=True)),
    }


def _step(layers: nn.Module, kind: OptimizerKind) -> Callable[[], object]:
    named = ((_PREFIX + name, each) for name, each in layers.named_parameters())
    return make_optimizer(named, OptimizerConfig(kind=kind), _PREFIX).step


def _iteration(matrices: Sequence[nn.Parameter], dtype: torch.dtype) -> Callable[[], object]:
    """Return what orthogonalises all matrices as the optimizer does: those of one shape at once."""
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for each in matrices:
        by_shape[each.shape].append(each.detach())
    stacks = [torch.stack(alike) for alike in by_shape.values()]
    return lambda: [orthogonalise(stack, dtype) for stack in stacks]


def _timer(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    return lambda: timed(work, device)


def optimizer_table(record: Mapping[str, Any]) -> list[str]:
    """Return a record as lines of Markdown."""
    place = record["surroundings"]
    lines = [
        f"`{record['command']}`, {place['device']}, {place['threads']} of {place['cores']} cores, "
        f"torch {place['torch']}, commit {place.get('commit', 'unknown')}; "
        f"{record['layers']} layers {record['width']} wide, {record['parameters'] / 1e6:.1f} M "
        f"parameters; Muon iterates in {record['muon_iterates_in']} here; medians "
        "(lowest–highest):",
        "",
        "| | ms | GFLOP/s |",
        "|---|--:|--:|",
    ]
    for name, seconds in record["seconds"].items():
        spread = Spread.of([1e3 * each for each in seconds])
        rate = record["gigaflops"] / median(seconds) if "iteration" in name else None
        lines.append(
            f"| {name} | {spread.median:.4g} ({spread.lowest:.4g}–{spread.highest:.4g}) | "
            f"{'–' if rate is None else f'{rate:.0f}'} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

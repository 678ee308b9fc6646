"""Peak memory of training at one depth, measured in a process that does nothing else.

    python -m benchmarks.memory SETTINGS

SETTINGS is a JSON object, which `measure_memory` writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from benchmarks.materials import Materials, Scale
from benchmarks.steps import Step
from benchmarks.variants import Setting
from interstack.errors import ConfigurationError, InterstackError

_STEPS: Final = 4
_PROCESS: Final = Path("/proc/self")
_RESET_PEAK: Final = "5"
"""What Linux wants written into clear_refs to forget the highest resident size so far."""


class Memory(NamedTuple):
    """Bytes at the peak.

    Attributes:
        depth: Layers of the student.
        training: What model, optimizer, data and step take; on a GPU, what torch has allocated.
        total: The whole process' resident memory; on a GPU, what torch has reserved.
    """

    depth: int
    training: int
    total: int


def measure_memory(materials: Materials, setting: Setting, depths: Sequence[int]) -> list[Memory]:
    """Measure each depth in a fresh process.

    Args:
        materials: Made already; the processes read them.
        setting: How steps are computed.
        depths: Layers of the students.

    Raises:
        InterstackError: If a process fails.
    """
    results = []
    for depth in depths:
        settings = {
            "directory": str(materials.directory),
            "scale": asdict(materials.scale),
            "device": materials.device.type,
            "setting": asdict(setting),
            "depth": depth,
        }
        command = [sys.executable, "-m", "benchmarks.memory", json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InterstackError(f"measuring the memory at {depth} layers failed:\n{done.stderr}")
        results.append(Memory(*json.loads(done.stdout.splitlines()[-1])))
    return results


def peak_memory(
    directory: Path, scale: Scale, device: torch.device, setting: Setting, depth: int
) -> Memory:
    """Measure in this process, which has to have done nothing big before.

    Args:
        directory: Of `Materials` that are made.
        scale: Theirs.
        device: Where to train.
        setting: How steps are computed.
        depth: Layers of the student.
    """
    _warm_up(device)
    before = _start_counting(device)
    materials = Materials(directory, scale, device)
    module = materials.module(setting, depth)
    step = Step(materials, setting, module, module.configure_optimizers())
    for _ in range(_STEPS):
        step.take()
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated(device)
        return Memory(depth, allocated, torch.cuda.max_memory_reserved(device))
    total = _status("VmHWM")
    return Memory(depth, total - before, total)


def check_can_measure(device: torch.device) -> None:
    """Refuse a system that does not say how much memory a process takes.

    Raises:
        ConfigurationError: If it is none that has /proc.
    """
    if device.type == "cpu" and not (_PROCESS / "clear_refs").exists():
        raise ConfigurationError("the bench reads peak memory from /proc/self, which Linux has")


def _warm_up(device: torch.device) -> None:
    """Load what torch loads at the first use of anything."""
    layer = nn.Linear(64, 64, device=device)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(64, 64, device=device)).sum().backward()
    optimizer.step()


def _start_counting(device: torch.device) -> int:
    """Forget the peak so far, and return what is taken now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    return _status("VmRSS")


def _status(name: str) -> int:
    """Return a size that Linux reports of this process, in bytes."""
    for line in (_PROCESS / "status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ConfigurationError(f"/proc/self/status has no {name}: the bench needs Linux")


def _main(arguments: Sequence[str]) -> None:
    settings: dict[str, Any] = json.loads(arguments[0])
    result = peak_memory(
        Path(settings["directory"]),
        Scale(**settings["scale"]),
        torch.device(settings["device"]),
        Setting(**settings["setting"]),
        settings["depth"],
    )
    print(json.dumps(result))


if __name__ == "__main__":
    _main(sys.argv[1:])

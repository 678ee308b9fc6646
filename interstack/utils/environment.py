"""The environment that a command computes in: device, cores, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from interstack.errors import ConfigurationError

_PACKAGES = ("torch", "lightning", "transformers", "interstack")
_ROOT = Path(__file__).parents[2]


def choose_device(name: str) -> torch.device:
    """Return the device of ``--device``; of several GPUs each of torchrun's ranks has its own.

    Args:
        name: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.

    Raises:
        ConfigurationError: If there is no GPU and one is required.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigurationError("--device is cuda, but no GPU is available: give cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def describe_environment(device: torch.device, precision: str) -> dict[str, str]:
    """Return device, cores, threads, number format, versions, and the commit if there is one.

    Args:
        device: What computes.
        precision: Number format, as the Trainer names it.
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "precision": precision,
        **versions(),
    }


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that matter; the commit if there is one."""
    found = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123, no ordinary file
            lines = [line for line in file if line.startswith("model name")]
        return lines[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of a source checkout, marked if files differ from it."""
    # an installed package may lie inside somebody else's repository
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()

"""Compiling a stack layer by layer, in place: names, weights and growth stay as they are."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from interstack.errors import ConfigurationError

_MOST_GRAPHS = 32
"""Graphs that torch may make of one function, 8 by default. All layers of student and teacher share
one, and each kind of use asks for a graph: training, validation, the teacher's, batches of one."""


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Compile those layers in place that are not compiled yet; it is done at their first use.

    Layers alike share their graphs, so a growth costs no compilation; nor does another length.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_GRAPHS)
    for layer in layers:
        if layer._compiled_call_impl is None:
            layer.compile(dynamic=True)


def check_can_compile(device_type: str) -> None:
    """Refuse to compile where that would fail at the first step, in words of torch's own.

    Args:
        device_type: Type of the device that is computed on.

    Raises:
        ConfigurationError: If it is a CPU, and a C++ compiler or Python's headers are missing.
    """
    if device_type != "cpu":
        return
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    lacking = [what for what in (compiler,) if shutil.which(what) is None]
    lacking += [] if headers.exists() else [str(headers)]
    if lacking:
        raise ConfigurationError(
            f"model.compile_layers needs {' and '.join(lacking)} on a CPU: install a C++ compiler "
            "and Python's headers (name another compiler by CXX), or set it to false"
        )

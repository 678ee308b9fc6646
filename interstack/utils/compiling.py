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
    """Compile the layers in place that are not compiled yet, at their first use.

    Equal layers share their graphs, so that a growth step costs no compilation; nor does another
    length of input.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_GRAPHS)
    for layer in layers:
        if layer._compiled_call_impl is None:
            layer.compile(dynamic=True)


def check_can_compile(device_type: str) -> None:
    """Refuse to compile where torch would fail at the first step.

    Args:
        device_type: Type of the device that is computed on.

    Raises:
        ConfigurationError: If it is a CPU, and a C++ compiler or Python's headers are missing.
    """
    if device_type != "cpu":
        return
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [] if shutil.which(compiler) else [compiler]
    missing += [] if headers.exists() else [str(headers)]
    if missing:
        raise ConfigurationError(
            f"model.compile_layers needs {' and '.join(missing)} on a CPU: install a C++ compiler "
            "and Python's headers (name another compiler by CXX), or set it to false"
        )

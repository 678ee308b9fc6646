"""Options that several commands have."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

import torch

from interstack.errors import ConfigurationError
from interstack.settings import check_effect


def choose_device(name: str) -> torch.device:
    """Return the device of ``--device``; of several GPUs each of torchrun's ranks has its own.

    Args:
        name: ``cpu``, ``cuda`` or ``auto``, a GPU if there is one.

    Raises:
        ConfigurationError: If there is no GPU and one is wanted.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigurationError("--device is cuda, but no GPU is available: give cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def check_flags(
    options: argparse.Namespace, defaults: Mapping[str, object], where: str, fix: str
) -> None:
    """Refuse options other than their defaults where none of them has an effect.

    Args:
        options: The parsed command line.
        defaults: The options by name, with their defaults.
        where: See `check_effect`.
        fix: See `check_effect`.

    Raises:
        ConfigurationError: With the first such option.
    """
    for name, default in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        check_effect(flag, getattr(options, name), default, where, fix)


def key_and_value(option: str, text: str, example: str) -> tuple[str, str]:
    """Return the parts of ``KEY=VALUE``.

    Args:
        option: Its option, for the message.
        text: As it is on the command line.
        example: For the message.

    Raises:
        ConfigurationError: If a part is missing.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigurationError(f"{option} is {text}, not KEY=VALUE: write it as {example}")
    return key, value

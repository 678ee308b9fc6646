"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from interstack.errors import ConfigurationError
from interstack.settings import check_effect


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

"""Configuration files that hold no key, as an overlay whose lines are all commented out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from interstack.errors import ConfigurationError, first_line

_WHOLE: Final = ("--config", "-c")
_SECTIONS: Final = (
    "--trainer",
    "--model",
    "--model.teacher",
    "--model.student",
    "--model.objective",
    "--model.optimizer",
    "--growth",
    "--data",
    "--checkpoint",
    "--tracking",
)
"""Options that take a file with the keys of one section, or these as JSON."""
_CLASSES: Final = ("--data.source", "--source")
"""Options that take a class, also from a file."""


def without_empty_configs(words: Sequence[str]) -> list[str]:
    """Leave out configuration files without a key, which the parser takes for malformed.

    Args:
        words: A command line.

    Raises:
        ConfigurationError: If a configuration file is no YAML, or holds something else than keys.
    """
    kept: list[str] = []
    place = 0
    while place < len(words):
        name, equals, path = words[place].partition("=")
        takes_file = _takes_whole(name) or name in (*_SECTIONS, *_CLASSES)
        given = list(words[place : place + 1 if equals or not takes_file else place + 2])
        place += len(given)
        if not takes_file or not _is_empty(name, path if equals else given[-1]):
            kept += given
    return kept


def _takes_whole(option: str) -> bool:
    """Return whether an option takes a whole configuration; the parser completes its name."""
    return option in _WHOLE or (len(option) > 3 and "--config".startswith(option))


def _is_empty(option: str, value: str) -> bool:
    path = Path(value)
    if not os.path.isfile(value):  # noqa: PTH113, a value that is no path, but long, is none
        return False
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{option} {path} can't be read ({first_line(error)}): give another file"
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"{option} {path} is no YAML ({reason}): correct it there"
        ) from error
    if option in _CLASSES:
        if content is None:
            raise ConfigurationError(
                f"{option} {path} holds nothing: write class_path: and init_args:"
            )
    elif content is not None and not isinstance(content, dict):
        keys = "keys such as growth:" if _takes_whole(option) else f"the keys of {option[2:]}"
        raise ConfigurationError(
            f"{option} {path} holds {first_line(ValueError(str(content)))}, which is no section: "
            f"write {keys}"
        )
    return content is None

"""Configuration files without a key, such as an overlay whose lines are all commented out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser
from jsonargparse._actions import ActionConfigFile, _ActionConfigLoad

from interstack.data.base import SpeechSource
from interstack.errors import ConfigurationError, first_line


def without_empty_configs(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Return a command line without its empty configuration files, which the parser would refuse.

    Args:
        words: The command line.
        parser: What will parse it, and knows which options take a file.

    Raises:
        ConfigurationError: If a configuration file is no YAML, or holds something else than keys.
    """
    options = _file_options(parser)
    kept: list[str] = []
    index = 0
    while index < len(words):
        name, equals, path = words[index].partition("=")
        if len(name) > 3 and "--config".startswith(name):  # the parser completes it
            name = "--config"
        takes_file = name in options
        given = list(words[index : index + 1 if equals or not takes_file else index + 2])
        index += len(given)
        if not takes_file or not _is_empty(name, path if equals else given[-1], options[name]):
            kept += given
    return kept


def _file_options(parser: ArgumentParser) -> dict[str, str]:
    """Return the options that take a file, and what is written into one."""
    contents = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        for option in action.option_strings:
            if isinstance(action, ActionConfigFile):
                contents[option] = "keys such as growth:"
            elif isinstance(action, _ActionConfigLoad):
                contents[option] = f"the keys of {option[2:]}"
            elif isinstance(hint, type) and issubclass(hint, SpeechSource):
                contents[option] = "class_path: and init_args:"
    return contents


def _is_empty(option: str, value: str, keys: str) -> bool:
    path = Path(value)
    if not os.path.isfile(value):  # noqa: PTH113, a value that is no path, but long, is none
        return False
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{option} {path} can't be read ({first_line(error)}): give another file"
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"{option} {path} is no YAML ({reason}): correct it there"
        ) from error
    if content is None and keys.startswith("class_path"):
        raise ConfigurationError(f"{option} {path} holds nothing: write {keys}")
    if content is not None and not isinstance(content, dict):
        raise ConfigurationError(
            f"{option} {path} holds {first_line(ValueError(str(content)))}, which is no section: "
            f"write {keys}"
        )
    return content is None

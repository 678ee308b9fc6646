"""A user's own code by its dotted name, such as ``mymodule.my_operator``."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from interstack.errors import ConfigurationError, first_line


def add_working_directory() -> None:
    """Let modules of the working directory be imported, after all that are installed.

    ``python -m`` does so by itself, a console script does not. Where Python was told not to
    (``-P``, ``PYTHONSAFEPATH``), nothing changes.
    """
    here = os.getcwd()  # noqa: PTH109, sys.path holds strings
    if not sys.flags.safe_path and "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def import_dotted(option: str, name: str) -> object:
    """Return what a dotted name stands for.

    Args:
        option: The option that names it, for messages.
        name: Module and attribute, such as ``mymodule.my_operator``.

    Raises:
        ConfigurationError: If the module can't be imported or lacks the attribute.
    """
    path, _, attribute = name.rpartition(".")
    try:
        module = import_module(path)
    except Exception as error:  # a module may raise anything while it is imported
        raise ConfigurationError(
            f"{option} is {name}, but {path} can't be imported "
            f"({type(error).__name__}: {first_line(error)}): correct it, or start in the directory "
            "that holds the module"
        ) from error
    if not hasattr(module, attribute):
        raise ConfigurationError(
            f"{option} is {name}, but {path} has no {attribute}: correct the name"
        )
    found: object = getattr(module, attribute)
    return found


def is_dotted(name: str) -> bool:
    """Return whether a name is one of an attribute in a module: ``mymodule.my_operator``."""
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)

"""Errors of Lightning and of the parser about a user's settings, each as one line."""

from __future__ import annotations

import logging
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import extract_tb
from types import TracebackType
from typing import Any, Final, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException

from interstack.errors import ConfigurationError, InterstackError

log = logging.getLogger(__name__)

Phase = Literal["construction", "run"]

_OF_SETTINGS: Final = (ValueError, TypeError, RuntimeError, ImportError, OSError)
"""Exceptions of constructors at a setting that they refuse."""

_PARTS: Final = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers")
"""Modules of Lightning whose classes a user adds to a run by their names."""

_CALLERS: Final = ("interstack.commands.lightning", "interstack.commands.dry_run")
"""Modules of ours that make the configured classes."""

_FIXES: Final = {
    "accelerator": "give one that this machine has, or auto",
    "strategy": "give ddp, or auto on one device",
    "callbacks": "change its settings, or remove it from trainer.callbacks",
}


_LISTS: Final = (
    "Expected a path but",
    "Does not validate against",
    "Not a valid subclass",
    "Parser key",
    "a class path (str)",
    "a dict with",
)
"""Beginnings of jsonargparse's reasons that do not explain the error."""


@contextmanager
def one_line_refusals(settings: Mapping[str, Any], phase: Phase) -> Iterator[None]:
    """Turn what Lightning refuses into an error that names the setting.

    These are exceptions that Lightning raises on purpose; those that pass through a callback or a
    logger that the user has added; and, while the configured classes are made, those of
    constructors. Where code of interstack lies between the command and the exception, it is a
    defect of ours, which keeps its traceback, as everything else does.

    Args:
        settings: The ``trainer`` section.
        phase: ``construction`` while the classes of the configuration are made, then ``run``.

    Raises:
        ConfigurationError: In place of such an exception; its traceback is logged for debugging.
    """
    try:
        yield
    except InterstackError:
        raise
    except Exception as error:
        modules = _modules_below(error.__traceback__)
        part = _part_of(error.__traceback__) or _parts_given(error)
        if any(_is_ours(module) for module in modules):
            raise
        constructs = phase == "construction" and isinstance(error, _OF_SETTINGS)
        refuses = isinstance(error, MisconfigurationException) or _is_raised_on_purpose(error)
        if not (refuses or part is not None or constructs):
            raise
        log.debug("Lightning's own traceback", exc_info=True)
        raise ConfigurationError(_line(error, part, settings)) from error


@contextmanager
def one_line_parse_errors(command: str) -> Iterator[None]:
    """Turn errors of a parser with ``exit_on_error=False`` into one line.

    Args:
        command: The command's name, whose help explains every option.

    Raises:
        ConfigurationError: In place of the parser's error, which is a page of usage and a list.
    """
    try:
        yield
    except ArgumentError as error:
        raise ConfigurationError(
            f"{_parse_line(str(error))}: interstack {command} --help explains every option"
        ) from error


def _parse_line(message: str) -> str:
    """Return an option, its value and the parser's reason, without its lists and classes."""
    named = re.match(r'Parser key "([^"]+)":\s*', message)
    option, rest = (named[1], message[named.end() :]) if named else ("", message)
    value = re.search(
        r"(?:Got|Given) value: (.*)\Z|Expected a path but (.*) either", rest, re.DOTALL
    )
    rest = re.sub(r"\s*(Got value|Given value type): .*", "", rest, flags=re.DOTALL)
    reasons = [" ".join(each.split()) for each in re.split(r"(?:\A|\n)\s*- ", rest)]
    found = [each for each in reasons if each and not each.startswith(_LISTS)]
    exact = [each for each in found if not each.startswith("Expected a <class")] or found
    reason = re.sub(r"<class '([\w.]+)'>", r"\1", "; ".join(dict.fromkeys(exact))).rstrip(".")
    given = "" if value is None else f" is {' '.join((value[1] or value[2]).split())}"
    return f"{option}{given}: {reason}" if option else reason


def _line(error: Exception, part: str | None, settings: Mapping[str, Any]) -> str:
    """Return the setting, its value, Lightning's reason and the fix."""
    message = _message(error)
    named = _named(message, settings) or (None if part else _of_module(error, settings))
    if named is None and part is not None:
        return f"trainer.callbacks or trainer.logger: {part}: {message}: {_FIXES['callbacks']}"
    if named is None:
        return f"the configuration: {message}"
    value = settings[named]
    shown = f" is {value}" if isinstance(value, str | int | float) else ""
    return f"trainer.{named}{shown}: {message}: {_FIXES.get(named, 'change it, or leave it out')}"


def _named(message: str, settings: Mapping[str, Any]) -> str | None:
    """Return the first setting that a message names as code, or else by its value."""
    given = {name: value for name, value in settings.items() if value is not None}
    as_code = {name: rf"`{name}`|\b{name}=" for name in given}
    values = {
        name: rf"\b{re.escape(value)}\b"
        for name, value in given.items()
        if isinstance(value, str) and value
    }
    bare = {name: rf"\b{name}\b" for name in given if "_" in name}  # no word of the language
    for patterns in (as_code, bare, values):
        found = {
            name: match.start()
            for name, pattern in patterns.items()
            if (match := re.search(pattern, message))
        }
        if found:
            return min(found, key=lambda name: found[name])
    return None


def _of_module(error: Exception, settings: Mapping[str, Any]) -> str | None:
    """Return the setting that the refusing module of Lightning's serves, by its folder."""
    modules = _modules_below(error.__traceback__)
    folders = modules[-1].split(".") if modules else []
    serves = {"accelerators": "accelerator", "strategies": "strategy", "profilers": "profiler"}
    found = next((serves[folder] for folder in folders if folder in serves), None)
    return found if settings.get(found or "") is not None else None


def _message(error: Exception) -> str:
    """Return the words of an exception in one line; of jsonargparse's lists the first reason."""
    words = str(error)
    if "Union subtypes" in words:
        reasons = re.split(r"\n\s*- ", words.partition("Errors:")[2].partition("\nGiven value")[0])
        words = next((reason for reason in reasons if reason.strip()), words)
    return " ".join(words.split()).rstrip(".") or type(error).__name__


def _parts_given(error: Exception) -> str | None:
    """Return the classes that jsonargparse could not make, which its own traceback hides."""
    words = str(error)
    if "Union subtypes" not in words:
        return None
    paths = re.findall(r"class_path='([\w.]+)'", words.partition("Given value:")[2])
    return ", ".join(path.rpartition(".")[2] for path in paths) or None


def _is_raised_on_purpose(error: Exception) -> bool:
    """Return whether the exception comes out of a ``raise`` of Lightning's."""
    frames = [frame for frame, _ in _walk(error.__traceback__)]
    if not frames or not str(frames[-1].f_globals.get("__name__", "")).startswith("lightning."):
        return False
    return _last_line(error.__traceback__).startswith("raise ")


def _last_line(traceback: TracebackType | None) -> str:
    lines = extract_tb(traceback)
    return (lines[-1].line or "").strip() if lines else ""


def _walk(traceback: TracebackType | None) -> Iterator[tuple[Any, int]]:
    """Yield the frames below the one that has caught the exception, and their lines."""
    traceback = None if traceback is None else traceback.tb_next
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _modules_below(traceback: TracebackType | None) -> list[str]:
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in _walk(traceback)]


def _is_ours(module: str) -> bool:
    return module.startswith("interstack.") and module not in _CALLERS


def _part_of(traceback: TracebackType | None) -> str | None:
    """Return the class of Lightning's callback or logger that has raised, if one has."""
    for frame, _ in _walk(traceback):
        module = str(frame.f_globals.get("__name__", ""))
        owner = frame.f_locals.get("self")
        if module.startswith(_PARTS) and owner is not None:
            return type(owner).__name__
    return None

"""Tables of all options, read from the parsers of the commands themselves."""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal
from unittest import mock

import jsonargparse
from lightning.pytorch.cli import LightningArgumentParser

from interstack import data
from interstack.commands import COMMANDS
from interstack.data.base import SpeechSource

MARKER: Final = "<!-- the tables of options, made from the parsers when the site is built -->"
"""Where the page wants the tables."""
SECTIONS: Final[Mapping[str, str]] = {
    "model.teacher": "the frozen teacher",
    "model.student": "the student's shape",
    "model.objective": "the loss",
    "model.optimizer": "the optimizer and its learning rate",
    "model": "the LightningModule",
    "growth": "stages, operator, what a growth step does",
    "data": "speech and batches",
    "checkpoint": "when a run is saved",
    "tracking": "Weights & Biases",
    "trainer": "Lightning's own; its documentation has more",
    "": "of the command itself",
}
"""Sections of a configuration with what they are about, in the page's order."""

_CONFIGURED: Final = ("fit", "validate", "test", "predict", "plan", "cache")
"""Commands that take a whole configuration."""


class _Captured(BaseException):
    """Carries a command's parser past everything that handles errors."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def _capture(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
    raise _Captured(parser)


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return a command's own parser, as the command makes it.

    Args:
        command: One of ``interstack.commands.COMMANDS``.
    """
    module, _, name = COMMANDS[command][0].rpartition(".")
    run = getattr(import_module(module), name)
    words = [command] if command in _CONFIGURED[:4] else []
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", _capture),
        mock.patch.object(jsonargparse.ArgumentParser, "parse_args", _capture),
    ):
        try:
            run(words)
        except _Captured as captured:
            parser = captured.parser
            if isinstance(parser, LightningArgumentParser) and words:
                subcommands = parser._subcommands_action.choices
                return typing.cast("argparse.ArgumentParser", subcommands[command])
            return parser
    raise AssertionError(f"the command {command} parses nothing")


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield what a user may give, without help and what stands for a whole section."""
    for action in parser._actions:
        kind = type(action).__name__
        hidden = kind in {"_HelpAction", "_ActionConfigLoad", "_ActionPrintConfig", "ActionLink"}
        if not hidden and kind != "_ActionHelpClassPath":
            yield action


def option_tables() -> str:
    """Return the tables of all options as Markdown: sections, sources of speech, commands."""
    fit = list(options_of(parser_of("fit")))
    lines: list[str] = []
    for section, about in SECTIONS.items():
        members = [action for action in fit if _section(action.dest) == section]
        title = f"`{section}`" if section else "No section"
        lines += [f"### {title}: {about}", "", *_table(members), ""]
    lines += ["## Sources of speech: `data.source`", ""]
    for kind in (getattr(data, name) for name in data.__all__):
        is_class = isinstance(kind, type)
        if is_class and issubclass(kind, SpeechSource) and not isabstract(kind):
            parser = jsonargparse.ArgumentParser()
            parser.add_class_arguments(kind)
            lines += [f"### `{kind.__name__}`", "", *_table(list(options_of(parser)), ""), ""]
    lines += ["## Commands", ""]
    known = {action.dest for action in fit}  # and so in whatever takes a configuration
    for command, (_, purpose) in COMMANDS.items():
        own = list(options_of(parser_of(command)))
        lines += [f"### `interstack {command}`", "", _sentence(purpose), ""]
        if command in _CONFIGURED:
            own = [action for action in own if action.dest not in known]
            lines += ["Takes a configuration, as above." + " Besides:" * bool(own), ""]
        lines += [*_table(own), ""] if own else []
    return "\n".join(lines)


def _section(name: str) -> str:
    """Return the section of an option's dotted name: the longest that it lies in."""
    parent = name.rpartition(".")[0]
    while parent not in SECTIONS:
        parent = parent.rpartition(".")[0]
    return parent


def _table(actions: Sequence[argparse.Action], prefix: str = "--") -> list[str]:
    rows = ["| option | default | values | |", "| --- | --- | --- | --- |"]
    for action in actions:
        cells = (_name(action, prefix), _default(action), _values(action), _help(action))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def _name(action: argparse.Action, prefix: str) -> str:
    """Return an option as it is written: with dashes in a command, without in a file."""
    names = [name for name in action.option_strings if not name.endswith("+")]
    names = [prefix + name[2:] if name.startswith("--") else name for name in names]
    return ", ".join(f"`{name}`" for name in names) or f"`{action.metavar or action.dest}`"


def _default(action: argparse.Action) -> str:
    if action.required or (not action.option_strings and action.nargs != "?"):
        return "required"
    value = action.default
    if value is None or value is argparse.SUPPRESS:
        return ""
    shown = list(value) if isinstance(value, tuple) else value
    if isinstance(shown, bool):
        shown = str(shown).lower()
    return f"`{shown}`"


def _values(action: argparse.Action) -> str:
    if action.choices is not None:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    kind = getattr(action, "_typehint", None) or action.type
    if kind is None:
        return "flag" if action.nargs == 0 else "text"
    return _type(kind)


def _type(kind: Any) -> str:  # noqa: ANN401, whatever stands in an annotation
    """Return an annotation in the words of a YAML file."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is UnionType or origin is typing.Union:
        return " or ".join("null" if each is NoneType else _type(each) for each in arguments)
    if origin is not None and arguments:
        return f"list of {_type(arguments[0])}"
    names = {bool: "true or false", str: "text", int: "integer", float: "number", Path: "path"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _help(action: argparse.Action) -> str:
    text = re.sub(r"\s+", " ", (action.help or "").replace("``", "`")).strip()
    text = text.replace("%%", "%").replace("%(default)s", str(action.default))
    if text.partition(" ")[0].rstrip(":,").isalpha():  # else it may be a name
        text = text[:1].upper() + text[1:]
    return text if "`" in text else re.sub(r"([<\[\]])", r"\\\1", text)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."

"""completion: what a shell completes after ``interstack``."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from interstack.commands import COMMANDS
from interstack.commands.lightning import InterstackCLI
from interstack.data.datamodule import SpeechDataModule
from interstack.distillation.module import Distillation
from interstack.errors import ConfigurationError

SHELLS: Final = ("bash", "zsh")
_DEEP: Final = ("trainer.strategy",)
"""Options whose classes nest so deeply that naming all of theirs takes tens of megabytes."""


def run_completion(arguments: Sequence[str]) -> None:
    """Parse the command's options and print the script.

    Args:
        arguments: The words after ``completion``.

    Raises:
        ConfigurationError: If shtab, which writes the script, is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="interstack completion",
        description="Print a script that lets a shell complete interstack's commands and options.",
        epilog="For bash: interstack completion bash > "
        "~/.local/share/bash-completion/completions/interstack, and open a new shell.",
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(arguments).shell
    if find_spec("shtab") is None:
        raise ConfigurationError(
            "completion needs shtab, which is not installed: pip install 'interstack[completion]'"
        )
    commands = {name: summary for name, (_, summary) in COMMANDS.items()}
    print(completion_parser(commands).get_completion_script(f"shtab-{shell}"))


def completion_parser(commands: Mapping[str, str]) -> Any:  # noqa: ANN401, jsonargparse leaves it
    """Return a parser that knows what is completed, and parses nothing.

    Those are the names of all commands, and the options of fit, validate, test and predict.

    Args:
        commands: What each command of the command line does.
    """
    parser = _lightning_parser()
    subcommands: Any = parser._subcommands_action
    for each in subcommands.choices.values():
        for action in each._actions:
            if action.dest in _DEEP:
                action._typehint = str
    for name, purpose in commands.items():
        if name not in subcommands.choices:
            subcommands.add_subcommand(name, ArgumentParser(), help=purpose)
    parser.prog = "interstack"
    return parser


class _ParserMade(Exception):  # noqa: N818, no error
    """Ends the making of a command line when there is its parser."""


class _ParserAlone(InterstackCLI):
    """A command line that parses nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Hand the parser over."""
        del args
        raise _ParserMade(parser)


def _lightning_parser() -> Any:  # noqa: ANN401, as above
    with ExitStack() as resources:
        scratch = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        try:
            _ParserAlone(
                command="fit",
                resources=resources,
                scratch=scratch,
                model_class=Distillation,
                datamodule_class=SpeechDataModule,
                auto_configure_optimizers=False,
            )
        except _ParserMade as made:
            return made.args[0]
    raise AssertionError("a command line parses its words when it is made")

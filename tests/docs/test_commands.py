"""Every command that README and docs show is one that the command line takes."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import jsonargparse
import pytest

from interstack import cli
from interstack.commands import COMMANDS, lightning
from tests import REPOSITORY

OF_A_PROJECT: Final = [REPOSITORY / "docs" / name for name in ("extending.md", "template.md")]
"""They name files of a user's own project; tests/template runs them there."""
PAGES: Final = [
    REPOSITORY / "README.md",
    *sorted(set((REPOSITORY / "docs").glob("*.md")) - set(OF_A_PROJECT)),
    *sorted(REPOSITORY.glob("*/README.md")),
    *sorted(REPOSITORY.glob("*/*/README.md")),
]
OURS: Final = ("interstack", "python -m interstack.cli")


def code_lines(page: Path) -> Iterator[str]:
    """Yield the lines of a page's indented blocks, with continued ones joined."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = re.sub(r" *\\\n +", " ", text).splitlines()
    yield from (line.strip() for line in lines if line.startswith("    "))


def commands(*beginnings: str, pages: Sequence[Path] = PAGES) -> list[str]:
    """Return the commands of all pages that begin with one of some words, each once."""
    begun = tuple(f"{beginning} " for beginning in beginnings)
    lines = (line for page in pages for line in code_lines(page))
    return list(dict.fromkeys(line for line in lines if line.startswith(begun)))


class Parsed(BaseException):
    """Raised in place of running a command that the parser has taken."""


def parse_alone(parser: type[argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a parser parse, and nothing come after it."""
    parse = parser.parse_args

    def parse_args(self: argparse.ArgumentParser, *words: Any, **settings: Any) -> None:  # noqa: ANN401
        parse(self, *words, **settings)
        raise Parsed

    monkeypatch.setattr(parser, "parse_args", parse_args)


def with_a_config(words: Sequence[str], scratch: Path) -> list[str]:
    """Stand in for the configuration that a checkpoint would give."""
    del scratch
    given = any(word.startswith("--config") for word in words)
    saved = [] if given else ["--config", "configs/interleaved.yaml"]
    return [words[0], *saved, *words[1:]]


@pytest.mark.parametrize("command", commands(*OURS))
def test_a_command_is_parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the repository's directory; by the command's own parser, which alone is run."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(lightning, "with_saved_config", with_a_config)
    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
        parse_alone(parser, monkeypatch)
    words = shlex.split(command.partition(" > ")[0], comments=True)
    words = words[1:] if words[0] == "interstack" else words[3:]
    if "--help" in words:
        assert words[0] in COMMANDS
        return
    try:
        status = cli.main(words)
    except Parsed:
        return
    except SystemExit as printed:  # --print_config
        status = printed.code
    assert status == 0


def test_pages_show_commands_of_all_kinds() -> None:
    """Every command has an example, and the tests above see it."""
    shown = {
        shlex.split(command)[1] for command in commands("interstack", pages=[*PAGES, *OF_A_PROJECT])
    }
    assert shown == set(COMMANDS)
    assert "python -m interstack.cli fit --config configs/interleaved.yaml" in commands("python")


def test_scripts_and_targets_are_there() -> None:
    """What pages give to make, python and sbatch, and the files that they name."""
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for command in commands("make"):
        assert shlex.split(command, comments=True)[1] in targets, command
    for command in commands("python", "sbatch", "wandb"):
        words = shlex.split(command.partition(" > ")[0], comments=True)
        if words[1] == "-m":
            assert find_spec(words[2]) is not None, command
        files = [word for word in words[1:] if word.endswith((".py", ".sbatch", ".yaml"))]
        for file in files:  # also where a loop of the shell names it
            assert any(REPOSITORY.glob(re.sub(r"\$\w+", "*", file))), command

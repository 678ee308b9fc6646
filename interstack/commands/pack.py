"""pack: from a folder of speech to tar shards."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import auto_cli, auto_parser

from interstack.commands.overlays import without_empty_configs
from interstack.commands.refusals import one_line_parse_errors
from interstack.data.shards import pack


def run_pack(arguments: Sequence[str]) -> None:
    """Parse the command's options and pack.

    Args:
        arguments: The words after ``pack``.

    Raises:
        InterstackError: As `pack` does, or if the parser refuses an option.
    """
    parser = auto_parser(pack, as_positional=False)
    words = without_empty_configs(arguments, parser)
    with one_line_parse_errors("pack"):
        packed = auto_cli(pack, args=words, as_positional=False, exit_on_error=False)
    for split, utterances in packed.items():
        print(f"{split}: {utterances} utterances")

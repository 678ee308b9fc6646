"""probe: what frozen models know of phones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from interstack.data.skips import OnCorrupt
from interstack.errors import ConfigurationError
from interstack.evaluation.phone_probe import phone_table, run_phone_probe
from interstack.evaluation.upstreams import LOG_MEL, RANDOM
from interstack.utils.disk import check_output, write_output


def run_probe(arguments: Sequence[str]) -> None:
    """Probe what the command line names, print a table, and write JSON where required.

    Args:
        arguments: The words after ``probe``.

    Raises:
        InterstackError: If corpus, upstreams or settings can't be used.
    """
    parser = probe_parser(
        "interstack probe", "Read phones off frozen upstreams with a linear probe."
    )
    parser.add_argument("--alignments", help="table of phones (default: CORPUS/alignments/en.tsv)")
    parser.add_argument("--per-layer", action="store_true", help="also probe each layer alone")
    options = parser.parse_args(arguments)
    check_probe_options(options)
    console = Console()
    report = run_phone_probe(
        options.corpus,
        options.upstream,
        alignments=options.alignments,
        seeds=options.seeds,
        per_layer=options.per_layer,
        on_corrupt=options.on_corrupt,
        show_progress=console.is_terminal,
    )
    console.print(phone_table(report))
    write_reports(options.json, [report.as_dict()])


def probe_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every probe has."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--corpus", required=True, help="folder with LibriSpeech/ and its labels")
    parser.add_argument(
        "--upstream",
        action="append",
        required=True,
        help="directory or hub id of a speech encoder, log-mel, log-mel:N with N frames of "
        "context, random:DIR for an untrained copy, or random for one of the first encoder that is "
        "given; may be given several times",
    )
    parser.add_argument("--seeds", type=int, default=3, help="probes for each upstream (default 3)")
    parser.add_argument(
        "--on-corrupt",
        choices=get_args(OnCorrupt),
        default="raise",
        help="raise: stop at a clip that can't be decoded or is too short for an upstream, naming "
        "it; skip: skip it, name the first and count them (default raise)",
    )
    parser.add_argument("--json", type=Path, help="file to write the reports to")
    return parser


def check_probe_options(options: argparse.Namespace) -> None:
    """Refuse options of ``probe_parser`` that can't work; resolve ``random`` to its model.

    Raises:
        ConfigurationError: In that case.
    """
    if options.seeds < 1:
        raise ConfigurationError(f"--seeds is {options.seeds}: give 1 or more")
    if options.json is not None:
        check_output(options.json, "--json")
    trained = [name for name in options.upstream if name.partition(":")[0] not in (LOG_MEL, RANDOM)]
    untrained = f"{RANDOM}:{trained[0]}" if trained else RANDOM
    options.upstream = [untrained if name == RANDOM else name for name in options.upstream]


def write_reports(path: Path | None, reports: Sequence[dict[str, Any]]) -> None:
    """Write what probes found as JSON, where a file is given."""
    if path is not None:
        text = json.dumps({"probes": list(reports)}, indent=2) + "\n"
        write_output(path, text.encode(), "--json")

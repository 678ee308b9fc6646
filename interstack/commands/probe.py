"""probe: what frozen models know of phones, prompts and speakers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from interstack.commands.options import check_flags
from interstack.data.skips import OnCorrupt
from interstack.errors import ConfigurationError
from interstack.evaluation.clip_probe import clip_table, run_clip_probe
from interstack.evaluation.phone_probe import phone_table, run_phone_probe
from interstack.evaluation.upstreams import LOG_MEL, RANDOM
from interstack.utils.disk import check_output, write_output

TASKS = ("phones", "domain", "speaker")


def run_probe(arguments: Sequence[str]) -> None:
    """Probe what the command line names, print a table a task, and write JSON with ``--json``.

    Args:
        arguments: The words after ``probe``.

    Raises:
        InterstackError: If corpus, upstreams or settings can't be used.
    """
    options = _parser().parse_args(arguments)
    unknown = [task for task in options.tasks if task not in TASKS]
    if unknown:
        raise ConfigurationError(
            f"there is no probe for {', '.join(unknown)}: --tasks are {' '.join(TASKS)}"
        )
    if options.seeds < 1:
        raise ConfigurationError(f"--seeds is {options.seeds}: give 1 or more")
    if "phones" not in options.tasks:
        where, fix = f"with --tasks {' '.join(options.tasks)}", "add phones to --tasks"
        check_flags(options, {"alignments": None, "per_layer": False}, where, fix)
    if options.json is not None:
        check_output(options.json, "--json")
    options.upstream = _with_untrained(options.upstream)
    console = Console()
    found: list[dict[str, Any]] = []
    for task in dict.fromkeys(options.tasks):
        report, table = _probe(task, options, console.is_terminal)
        console.print(table)
        found.append(report)
        if options.json is not None:  # after each task, which may take long
            text = json.dumps({"probes": found}, indent=2) + "\n"
            write_output(options.json, text.encode(), "--json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interstack probe",
        description="Read labels off frozen upstreams with SUPERB's linear probe.",
    )
    parser.add_argument("--corpus", required=True, help="folder with LibriSpeech/ and alignments/")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=["phones"],
        metavar="TASK",
        help="phones (forced alignments), domain (of prompts), speaker (characters of a game); "
        "default: phones",
    )
    parser.add_argument(
        "--alignments",
        help="table of phones, for the task phones (default: CORPUS/alignments/en.tsv)",
    )
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
        "--per-layer", action="store_true", help="also probe each layer alone for phones"
    )
    parser.add_argument(
        "--on-corrupt",
        choices=get_args(OnCorrupt),
        default="raise",
        help="raise: stop at a clip that can't be decoded or is too short for an upstream, naming "
        "it; skip: leave it out, name the first and count them (default raise)",
    )
    parser.add_argument("--json", type=Path, help="file to write the reports to")
    return parser


def _with_untrained(upstreams: Sequence[str]) -> list[str]:
    """Complete ``random`` by the model of which it is a copy."""
    trained = [name for name in upstreams if name.partition(":")[0] not in (LOG_MEL, RANDOM)]
    copied = f"{RANDOM}:{trained[0]}" if trained else RANDOM
    return [copied if name == RANDOM else name for name in upstreams]


def _probe(
    task: str, options: argparse.Namespace, show_progress: bool
) -> tuple[dict[str, Any], Table]:
    if task == "phones":
        phones = run_phone_probe(
            options.corpus,
            options.upstream,
            alignments=options.alignments,
            seeds=options.seeds,
            per_layer=options.per_layer,
            on_corrupt=options.on_corrupt,
            show_progress=show_progress,
        )
        return phones.as_dict(), phone_table(phones)
    clips = run_clip_probe(
        "domain" if task == "domain" else "speaker",
        options.corpus,
        options.upstream,
        seeds=options.seeds,
        on_corrupt=options.on_corrupt,
        show_progress=show_progress,
    )
    return clips.as_dict(), clip_table(clips)

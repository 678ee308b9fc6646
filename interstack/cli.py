"""The command line: ``python -m interstack.cli`` or ``interstack``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, TextIO

from interstack.errors import InterstackError, RunInterrupted

_LIGHTNING: Final = "interstack.commands.lightning.run_lightning"
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "fit": (_LIGHTNING, "distil a teacher into a growing student"),
    "validate": (_LIGHTNING, "the validation loss of a checkpoint"),
    "test": (_LIGHTNING, "the test loss of a checkpoint"),
    "predict": (_LIGHTNING, "write a checkpoint's hidden states of the test split"),
    "plan": (
        "interstack.commands.plan.run_plan",
        "what a run will cost, before it starts: stages, step split, wall-clock",
    ),
    "cache": (
        "interstack.commands.cache.run_cache",
        "compute the teacher's targets of a corpus once, for runs without a teacher",
    ),
    "sweep": (
        "interstack.commands.sweep.run_sweep",
        "compare recipes: arms, seeds and values as runs of fit, and their table",
    ),
    "report": (
        "interstack.commands.report.run_report",
        "runs as one HTML file: losses, stages, lineage, step split, similarity",
    ),
    "workspace": (
        "interstack.commands.workspace.run_workspace",
        "panels for Weights & Biases, laid out for a growing run",
    ),
    "export": (
        "interstack.commands.export.run_export",
        "a checkpoint's student as a Hugging Face directory, and as ONNX",
    ),
    "inspect": (
        "interstack.commands.inspect.run_inspect",
        "what models cost: parameters, GMACs, real-time factor on this machine",
    ),
    "pack": (
        "interstack.commands.pack.run_pack",
        "pack a folder of speech into tar shards that can be streamed",
    ),
    "probe": (
        "interstack.commands.probe.run_probe",
        "what models know of phones: a linear probe",
    ),
    "superb": (
        "interstack.commands.superb.run_superb",
        "SUPERB's tasks by s3prl's own recipes, beside the published rows",
    ),
}
"""Of each command the function that runs it, imported when it is called, and its summary."""


def overview() -> str:
    """Return the help of the command line as a whole."""
    lines = [f"  {name:<9} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "interstack: distil a speech foundation model into a student that grows in depth.",
            "",
            "usage: python -m interstack.cli COMMAND [options]",
            "",
            *lines,
            "",
            "COMMAND --help explains every option; start with",
            "  python -m interstack.cli fit --config configs/interleaved.yaml",
        ]
    )


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the present standard error, which may be redirected after the handler is made."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


def _log_to_terminal() -> None:
    """Print our own log; Lightning prints its own."""
    logger = logging.getLogger("interstack")
    if not logger.handlers:
        logger.addHandler(_StandardError())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _report_stop(stop: RunInterrupted) -> int:
    """Print why a run has stopped, on the first process alone, and return the exit status.

    Lightning's launcher kills the other processes as soon as it sees one that has failed.
    """
    from interstack.commands.run_directory import is_first_process

    if not is_first_process():
        return 0
    print(stop, file=sys.stderr)
    return stop.exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; print an error that the user can fix as one line.

    Args:
        arguments: Words of the command line; those of the process if None.

    Returns:
        The exit status: 0; 2 after such an error; 75 where a signal has stopped a run that can be
        resumed, 130 where it was Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] not in COMMANDS:
        print(f"error: there is no command {words[0]!r}\n\n{overview()}", file=sys.stderr)
        return 2
    _log_to_terminal()
    function, _ = COMMANDS[words[0]]
    module, _, name = function.rpartition(".")
    try:
        run = getattr(import_module(module), name)
        run(words if function == _LIGHTNING else words[1:])
    except RunInterrupted as stop:
        return _report_stop(stop)
    except InterstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        from interstack.utils.disk import is_disk_error, reason

        if not is_disk_error(error):
            raise  # a defect of ours
        named = f"{error.filename} " if error.filename else "a file "
        print(
            f"error: {named}can't be read or written ({reason(error)}): fix that (free space on a "
            "full disk, or get permission), then give the same command again",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

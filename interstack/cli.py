"""The command line: ``python -m interstack.cli`` or ``interstack``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from interstack.errors import InterstackError, RunInterrupted
from interstack.utils.dotted import add_working_directory

Arguments = Sequence[str]


def _lightning(arguments: Arguments) -> None:
    from interstack.commands.lightning import run_lightning

    run_lightning(arguments)


def _cache(arguments: Arguments) -> None:
    from interstack.commands.cache import run_cache

    run_cache(arguments)


def _plan(arguments: Arguments) -> None:
    from interstack.commands.plan import run_plan

    run_plan(arguments)


def _export(arguments: Arguments) -> None:
    from interstack.commands.export import run_export

    run_export(arguments)


def _inspect(arguments: Arguments) -> None:
    from interstack.commands.inspect import run_inspect

    run_inspect(arguments)


def _pack(arguments: Arguments) -> None:
    from interstack.commands.pack import run_pack

    run_pack(arguments)


def _probe(arguments: Arguments) -> None:
    from interstack.commands.probe import run_probe

    run_probe(arguments)


def _report(arguments: Arguments) -> None:
    from interstack.commands.report import run_report

    run_report(arguments)


def _superb(arguments: Arguments) -> None:
    from interstack.commands.superb import run_superb

    run_superb(arguments)


def _sweep(arguments: Arguments) -> None:
    from interstack.commands.sweep import run_sweep

    run_sweep(arguments)


def _new(arguments: Arguments) -> None:
    from interstack.commands.new import run_new

    run_new(arguments)


def _completion(arguments: Arguments) -> None:
    from interstack.commands.completion import run_completion

    run_completion(arguments, {name: purpose for name, (_, purpose) in COMMANDS.items()})


def _workspace(arguments: Arguments) -> None:
    from interstack.commands.workspace import run_workspace

    run_workspace(arguments)


COMMANDS: dict[str, tuple[Callable[[Arguments], None], str]] = {
    "new": (_new, "make a small project of one's own, which trains in a minute"),
    "fit": (_lightning, "distil a teacher into a growing student"),
    "validate": (_lightning, "the validation loss of a checkpoint"),
    "test": (_lightning, "the test loss of a checkpoint"),
    "predict": (_lightning, "write a checkpoint's hidden states of the test split"),
    "plan": (_plan, "what a run will cost, before it is begun: stages, step split, wall-clock"),
    "cache": (_cache, "compute the teacher's targets of a corpus once, for runs without a teacher"),
    "sweep": (_sweep, "compare recipes: arms, seeds and values as runs of fit, and their table"),
    "report": (_report, "runs as one HTML file: losses, stages, lineage, step split, similarity"),
    "workspace": (_workspace, "panels for Weights & Biases, laid out for a growing run"),
    "export": (_export, "a checkpoint's student as a Hugging Face directory, and as ONNX"),
    "inspect": (_inspect, "what models cost: parameters, GMACs, real-time factor on this machine"),
    "pack": (_pack, "pack a folder of speech into tar shards that can be streamed"),
    "probe": (_probe, "what models know of phones, prompts and speakers: linear probes"),
    "superb": (_superb, "SUPERB's tasks by s3prl's own recipes, beside the published rows"),
    "completion": (_completion, "print what lets a shell complete commands and options"),
}


_CONFIGURED = (_lightning, _plan, _cache, _pack)
"""Commands that take configuration files."""


def overview() -> str:
    """Return what the command line offers."""
    lines = [f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "interstack: distil a speech foundation model into a student that grows in depth.",
            "",
            "usage: python -m interstack.cli COMMAND [options]",
            "",
            *lines,
            "",
            "COMMAND --help explains every option; begin with",
            "  python -m interstack.cli fit --config configs/interleaved.yaml",
        ]
    )


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what is the standard error when a message comes, which may be redirected."""

    @property
    def stream(self) -> TextIO:
        """The present standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Ignore the one of when the handler was made."""


def _log_to_terminal() -> None:
    """Print our own log; Lightning prints its own."""
    logger = logging.getLogger("interstack")
    if not logger.handlers:
        logger.addHandler(_StandardError())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _say_stopped(stop: RunInterrupted) -> int:
    """Let the first process speak for all, and return the exit status.

    Lightning's launcher kills the others as soon as it sees one that has failed.
    """
    from interstack.commands.run_directory import is_first_process

    if not is_first_process():
        return 0
    print(stop, file=sys.stderr)
    return stop.exit_status


def main(arguments: Arguments | None = None) -> int:
    """Run a command; print a mendable error as one line.

    Args:
        arguments: Words of the command line; those of the process if None.

    Returns:
        The exit status: 0; 2 after a mendable error; 75 where a signal has stopped a run that can
        go on, 130 where it was Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] not in COMMANDS:
        print(f"error: there is no command {words[0]!r}\n\n{overview()}", file=sys.stderr)
        return 2
    from interstack.commands.overlays import without_empty_configs

    add_working_directory()
    _log_to_terminal()
    run, _ = COMMANDS[words[0]]
    try:
        if run in _CONFIGURED:
            words = without_empty_configs(words)
        run(words if run is _lightning else words[1:])
    except RunInterrupted as stop:
        return _say_stopped(stop)
    except InterstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        from interstack.utils.disk import is_disk_error, reason

        if not is_disk_error(error):
            raise  # a defect of ours
        named = f"{error.filename} " if error.filename else "a file "
        print(
            f"error: {named}can't be read or written ({reason(error)}): mend that (free space on a "
            "full disk, or get permission), then give the same command again",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""export: a checkpoint's student as a Hugging Face directory, and as ONNX."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from interstack.checkpointing.inspect import CONFIG_KEY
from interstack.commands.dry_run import describe_run
from interstack.errors import ConfigurationError, InterstackError
from interstack.export.hub import HubRepository
from interstack.export.huggingface import (
    atomic_directory,
    load_student,
    validation_clips,
    write_export,
)
from interstack.settings import check_effect
from interstack.utils.disk import write_errors

log = logging.getLogger(__name__)


def run_export(arguments: Sequence[str]) -> None:
    """Parse the command's options and write the directory, whole or not at all.

    Args:
        arguments: The words after ``export``.

    Raises:
        InterstackError: If the checkpoint can't be used, or the directory can't be written.
    """
    parser = argparse.ArgumentParser(
        prog="interstack export",
        description="Write a checkpoint's student as an ordinary Hugging Face HubertModel.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a .ckpt file, or a run's directory"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory that is made")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx")
    parser.add_argument(
        "--no-precision-check",
        action="store_true",
        help="do not compare model.onnx with the student on speech",
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="also upload the directory, with its card, to this repository of the Hugging Face hub",
    )
    parser.add_argument("--private", action="store_true", help="make that repository private")
    options = parser.parse_args(arguments)
    if options.no_precision_check and not options.onnx:
        raise ConfigurationError(
            "--no-precision-check is given without --onnx, and only a graph is checked: leave it "
            "out"
        )
    repository = None
    if options.push_to_hub is None:
        check_effect("--private", options.private, False, "without --push-to-hub")
    else:
        repository = HubRepository(options.push_to_hub, private=options.private)
    student, content = load_student(options.checkpoint)
    with atomic_directory(options.output) as directory:
        clips = _clips(content)
        write_export(
            student,
            content,
            directory,
            clips=clips,
            with_onnx=options.onnx,
            precision_check=not options.no_precision_check,
        )
    print(
        f"the student of {student.depth} layers is in {options.output}: "
        f'AutoModel.from_pretrained("{options.output}")'
    )
    if repository is not None:
        try:
            print(f"it is on the hub: {repository.upload(options.output)}")
        except InterstackError as error:
            raise InterstackError(f"{error} (the export is in {options.output})") from error


def _clips(content: Mapping[str, Any]) -> list[Tensor]:
    """Return speech of the run that a checkpoint is of, if it is at hand."""
    text = content.get(CONFIG_KEY)
    if text is None:
        return []
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.yaml"
        try:
            with write_errors(config, "free space there, or set TMPDIR to another directory"):
                config.write_text(text, encoding="utf-8")
            datamodule = describe_run("export", [f"--config={config}"]).datamodule
            datamodule.target_cache = None
            datamodule.setup("validate")
        except InterstackError as error:
            log.warning("padding is not measured for the export's card: %s", error)
            return []
    return validation_clips(datamodule)

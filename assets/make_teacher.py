"""Make assets/teacher from a checkpoint of configs/embedded_teacher.yaml.

python assets/make_teacher.py RUN/checkpoints/last.ckpt assets/teacher

The weights are rounded to fp16, which halves the folder and changes hidden states by less than the
teacher's own noise; interstack computes with them in fp32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from interstack.distillation.module import Distillation
from interstack.export.huggingface import export_student


def make_teacher(checkpoint: Path, directory: Path) -> None:
    """Write the checkpoint's student as an fp16 ``HubertModel``."""
    student = Distillation.load_from_checkpoint(checkpoint, map_location="cpu").student
    export_student(student.half(), directory)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    make_teacher(arguments.checkpoint, arguments.directory)


if __name__ == "__main__":
    main()

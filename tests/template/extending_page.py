"""The blocks of docs/extending.md as the files that the page says they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from tests import REPOSITORY

PAGE: Final = REPOSITORY / "docs" / "extending.md"
SPEECH: Final = REPOSITORY / "assets" / "speech" / "LibriSpeech"
SPLITS: Final = {"train": "train-clean-100", "validation": "dev-clean", "test": "test-clean"}

SMALL_RUN: Final[dict[str, Any]] = {
    "seed_everything": 1,
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 6,
        "log_every_n_steps": 1,
        "limit_val_batches": 1,
        "default_root_dir": "run",
        "logger": False,
    },
    "model": {
        "student": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
        },
    },
    "growth": {"depths": [2, 3, 5]},
    "data": {"batch_seconds": 16, "num_workers": 0},
}
"""A run of six steps and three stages, for the page's overlays to complete."""


def blocks(language: str) -> list[str]:
    """Return the page's code blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found


def write_page(directory: Path) -> list[str]:
    """Write module, overlays, a base configuration and lists of speech; return ``--config``s."""
    (directory / "mymodule.py").write_text("\n\n".join(blocks("python")))
    (directory / "run.yaml").write_text(yaml.safe_dump(SMALL_RUN))
    (directory / "lists").mkdir()
    for split, folder in SPLITS.items():
        paths = sorted(str(path) for path in (SPEECH / folder).rglob("*.flac"))
        (directory / "lists" / f"{split}.txt").write_text("\n".join(paths[:40]))
    names = ["run.yaml"]
    for block in blocks("yaml"):
        names.append(block.splitlines()[0].removeprefix("# "))
        (directory / names[-1]).write_text(block)
    return [f"--config={name}" for name in names]

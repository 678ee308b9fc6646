"""Arrange the study's corpus: two corpora as one, by links, with speakers kept apart for judging.

    python -m benchmarks.study.corpus --corpus DIR --speech DIR --output data/study

CORPUS is a folder with ``LibriSpeech`` as the quality study takes it, SPEECH one with real
LibriSpeech: train-clean-100 and dev-clean, whole or in part. Four of dev-clean's speakers are
judged by and not trained on; all others and both train-clean-100 are the training split. The
validation split is every third utterance of those four and of CORPUS' own dev-clean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from interstack.data.audio_files import supported_audio
from interstack.errors import ConfigurationError

JUDGED_SPEAKERS: Final = ("1272", "1462", "1673", "2078")
"""Of dev-clean: two women and two men, chosen by number before anything was trained."""
EVERY: Final = 3
TRAIN, VALIDATION = "train-clean-100", "dev-clean"


def arrange(corpus: Path, speech: Path, output: Path) -> dict[str, int]:
    """Make links to all files of the study.

    Args:
        corpus: Folder with ``LibriSpeech/{train-clean-100,dev-clean}``.
        speech: Likewise, of real LibriSpeech.
        output: New folder, which gets ``LibriSpeech/{train-clean-100,dev-clean}``.

    Returns:
        Number of files by split.

    Raises:
        ConfigurationError: If output is there, or a split or a judged speaker is missing.
    """
    if output.exists():
        raise ConfigurationError(f"--output {output} is there already: remove it or name another")
    dev = _speakers(speech, VALIDATION)
    missing = [speaker for speaker in JUDGED_SPEAKERS if speaker not in dev]
    if missing:
        raise ConfigurationError(
            f"--speech {speech} lacks dev-clean's {', '.join(missing)}: give LibriSpeech"
        )
    train = _speakers(corpus, TRAIN) | _speakers(speech, TRAIN)
    train |= {name: path for name, path in dev.items() if name not in JUDGED_SPEAKERS}
    for name, path in train.items():
        _link(output / "LibriSpeech" / TRAIN / name, path)
    judged = [path for name, path in dev.items() if name in JUDGED_SPEAKERS]
    judged += _speakers(corpus, VALIDATION).values()
    files = [file for path in judged for file in _audio(path)]
    for file in files[::EVERY]:
        _link(output / "LibriSpeech" / VALIDATION / Path(*file.parts[-3:]), file)
    counted = {TRAIN: sum(len(_audio(path)) for path in train.values())}
    return counted | {VALIDATION: len(files[::EVERY])}


def _speakers(root: Path, split: str) -> dict[str, Path]:
    folder = root / "LibriSpeech" / split
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: give one with LibriSpeech/{split}")
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def _audio(speaker: Path) -> list[Path]:
    return sorted(map(Path, supported_audio(speaker)))


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target.resolve())


def main(arguments: Sequence[str] | None = None) -> None:
    """Arrange what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.study.corpus",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    counted = arrange(options.corpus, options.speech, options.output)
    print(", ".join(f"{name}: {count} files" for name, count in counted.items()))


if __name__ == "__main__":
    main()

"""Files that s3prl's experts read and its wheel lacks, written for a job."""

from __future__ import annotations

import csv
import io
import json
import re
import string
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final

from interstack.data.audio import read_header
from interstack.data.audio_files import supported_audio
from interstack.data.skips import OnCorrupt
from interstack.errors import DataError
from interstack.evaluation.superb.sox_effects import load
from interstack.evaluation.superb.tasks import Config, Task
from interstack.utils.atomic import write_whole
from interstack.utils.disk import is_there

_VOWELS: Final = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS: Final = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
_NOISES: Final = ("SIL", "SPN")
_EMOTIONS: Final = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
_MERGED: Final = {"exc": "hap"}
"""Excitement counts as happiness, as in SUPERB."""
Skipped = list[str] | None
"""Collects what is wrong with each skipped file; None: the first such file raises."""


def phone_inventory() -> list[str]:
    """Return ARPAbet as in LibriSpeech's lexicons: silence, noise, vowels with stress."""
    stressed = [f"{vowel}{stress}" for vowel, stress in product(_VOWELS.split(), "012")]
    return [*_NOISES, *sorted([*stressed, *_CONSONANTS.split()])]


def prepare(
    task: Task, config: Config, directory: Path, on_corrupt: OnCorrupt = "raise"
) -> list[str]:
    """Write the files that a task's settings name in its job's directory.

    Args:
        task: The task.
        config: Its settings, with directories.
        directory: The job's directory; it exists.
        on_corrupt: What to do at audio that can't be decoded.

    Returns:
        What is wrong with each skipped file.

    Raises:
        DataError: If audio can't be decoded and is not to be skipped.
    """
    maker = _MAKERS.get(task.name)
    skipped: list[str] = []
    if maker is not None:
        maker(config["downstream_expert"], directory, skipped if on_corrupt == "skip" else None)
    return skipped


def _phones(_: Config, directory: Path, __: Skipped) -> None:
    (directory / "phones.txt").write_text("\n".join(phone_inventory()) + "\n")


def _slots(_: Config, directory: Path, __: Skipped) -> None:
    characters = [" ", *string.ascii_uppercase, "'"]
    (directory / "characters.txt").write_text("\n".join(characters) + "\n")


def _letters(expert: Config, directory: Path, skipped: Skipped) -> None:
    """Write ASR's dictionary, and the lengths that its batches are sorted by."""
    letters = ["|", *string.ascii_uppercase, "'"]  # a fairseq dictionary counts its symbols
    text = "".join(f"{letter} 1\n" for letter in letters)
    (directory / "characters.dict").write_text(text)
    data = expert["datarc"]
    root, lengths = Path(data["libri_root"]), directory / "lengths"
    lengths.mkdir(exist_ok=True)
    splits = ("train", "dev-clean", "test-clean")
    for part in dict.fromkeys(part for split in splits for part in data[split]):
        _write_lengths(root, part, lengths / f"{part}.csv", skipped)


def _write_lengths(root: Path, part: str, table: Path, skipped: Skipped) -> None:
    """Write the samples of each file below a part, unless that is done."""
    if is_there(table):
        return
    files = [Path(file) for file in supported_audio(root / part)]
    rows = []
    for file in files:
        try:
            samples = read_header(file.stem, str(file), str(file)).num_source_samples
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
        else:
            rows.append((str(file.relative_to(root)), samples))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["file_path", "length"])
    writer.writerows(rows)
    write_whole(table, text.getvalue().encode())


def _emotions(expert: Config, directory: Path, skipped: Skipped) -> None:
    """Write IEMOCAP's labels for a fold: one session to test on, the others to train on."""
    root = Path(expert["datarc"]["root"])
    sessions = [f"Session{number}" for number in range(1, 6)]
    labelled = {session: _labelled(root, session) for session in sessions}
    if skipped is not None:  # the expert reads all of it when it is constructed
        labelled = {each: _decodable(root, rows, skipped) for each, rows in labelled.items()}
    fold = str(expert["datarc"]["test_fold"]).replace("fold", "Session")
    folder = directory / "meta_data" / fold
    folder.mkdir(parents=True, exist_ok=True)
    train = [row for session in sessions if session != fold for row in labelled[session]]
    for split, rows in (("train", train), ("test", labelled[fold])):
        content = {"labels": _EMOTIONS, "meta_data": rows}
        (folder / f"{split}_meta_data.json").write_text(json.dumps(content))


def _labelled(root: Path, session: str) -> list[dict[str, Any]]:
    """Return a session's utterances of the four emotions."""
    found = supported_audio(root / session / "sentences/wav")
    files = {file.stem: file for file in map(Path, found)}
    rows = []
    for table in sorted((root / session / "dialog/EmoEvaluation").glob("*.txt")):
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            fields = re.split(r"\t+", line)
            if not line.startswith("[") or len(fields) < 3 or fields[1] not in files:
                continue
            label = _MERGED.get(fields[2], fields[2])
            if label in _EMOTIONS:
                path = str(files[fields[1]].relative_to(root))
                rows.append({"path": path, "label": label, "speaker": fields[1][:6]})
    return rows


def _decodable(root: Path, rows: list[dict[str, Any]], skipped: list[str]) -> list[dict[str, Any]]:
    kept = []
    for row in rows:
        try:
            load(root / row["path"])
        except DataError as error:
            skipped.append(str(error))
        else:
            kept.append(row)
    return kept


def _no_trials(_: Config, directory: Path, __: Skipped) -> None:
    (directory / "no_trials.txt").touch()


_MAKERS: Final[Mapping[str, Callable[[Config, Path, Skipped], None]]] = {
    "pr": _phones,
    "asr": _letters,
    "sf": _slots,
    "er": _emotions,
    "asv": _no_trials,
}

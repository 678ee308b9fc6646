"""Checks of each task's data, with the source of what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from interstack.data.audio_files import list_audio
from interstack.errors import DataError
from interstack.evaluation.superb.tasks import Config, Task

Problem = str
"""What is missing, and its source."""

_LIBRISPEECH: Final = (
    "LibriSpeech's parts train-clean-100, dev-clean and test-clean: openslr.org/12"
)
_LEXICONS: Final = (
    "s3prl's lexicons (folder s3prl/downstream/ctc/lexicon of github.com/s3prl/s3prl), copied there"
)
_SPEECH_COMMANDS: Final = "Speech Commands v0.01 and its test set, each unpacked: tensorflow.org"
_VOXCELEB: Final = (
    "VoxCeleb1 as dev/wav/SPEAKER/… and test/wav/SPEAKER/…: robots.ox.ac.uk/~vgg/data/voxceleb"
)
_SNIPS: Final = "Audio SNIPS as s3prl prepares it (preprocess/snips_prepare_data.sh): wav folders"
_FLUENT: Final = "Fluent Speech Commands, unpacked: fluent.ai"
_IEMOCAP: Final = "IEMOCAP's release, Session1 to Session5: sail.usc.edu/iemocap"
_MIXTURES: Final = (
    "Libri2Mix for diarization as Kaldi folders, made by s3prl's LibriMix fork "
    "(generate_librimix_sd.sh, then scripts/prepare_diarization.py)"
)
_QUESST: Final = "QUESST 2014: speech.fit.vutbr.cz/files/quesst14Database.tgz"


def check_layout(task: Task, config: Config) -> None:
    """Raise if a task's data is not complete.

    Args:
        task: The task.
        config: Its settings, with directories.

    Raises:
        DataError: With everything that is missing, and its source.
    """
    problems = list(_CHECKS[task.name](config["downstream_expert"]))
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise DataError(f"the data of {task.name.upper()} ({task.title}) is not complete:{listed}")


def _pr(expert: Config) -> Iterator[Problem]:
    corpus = expert["corpus"]
    parts = [part for split in ("train", "dev", "test") for part in corpus[split]]
    yield from _folders(Path(corpus["path"]), parts, None, _LIBRISPEECH)
    for lexicon in corpus["lexicon"]:
        yield from _file(Path(lexicon), _LEXICONS)


def _asr(expert: Config) -> Iterator[Problem]:
    data = expert["datarc"]
    parts = [part for split in ("train", "dev-clean", "test-clean") for part in data[split]]
    yield from _folders(Path(data["libri_root"]), parts, None, _LIBRISPEECH)


def _ks(expert: Config) -> Iterator[Problem]:
    data = expert["datarc"]
    root = Path(data["speech_commands_root"])
    yield from _folders(root, ["yes", "no", "_background_noise_"], "*.wav", _SPEECH_COMMANDS)
    test = Path(data["speech_commands_test_root"])
    yield from _folders(test, ["yes", "no", "_silence_", "_unknown_"], "*.wav", _SPEECH_COMMANDS)


def _sid(expert: Config) -> Iterator[Problem]:
    data = expert["datarc"]
    root, table = Path(data["file_path"]), Path(data["meta_data"])
    missing = list(_file(table, "VoxCeleb1's split for identification (iden_split.txt), so named"))
    yield from missing
    if missing:
        return
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line]
    wrong = [row for row in rows if len(row) != 2 or row[0] not in ("1", "2", "3")]
    if wrong:
        yield f"{table} has a line {' '.join(wrong[0])!r}; it needs 1, 2 or 3 and a file a line"
        return
    wavs = [folder for folder in root.glob("*/wav") if folder.is_dir()]
    absent = [file for _, file in rows if not any((wav / file).is_file() for wav in wavs)]
    if absent:
        yield (
            f"{len(absent)} of the {len(rows)} files that {table.name} names are not below "
            f"{root}/*/wav, the first one {absent[0]}: {_VOXCELEB}"
        )


def _sf(expert: Config) -> Iterator[Problem]:
    root = Path(expert["corpus"]["path"])
    yield from _folders(root, ["train", "valid", "test"], None, _SNIPS)
    yield from _file(root / "all.iob.snips.txt", _SNIPS)
    yield from _file(Path(expert["text"]["slots_file"]), _SNIPS)


def _ic(expert: Config) -> Iterator[Problem]:
    root = Path(expert["datarc"]["file_path"])
    for split in ("train", "valid", "test"):
        yield from _file(root / "data" / f"{split}_data.csv", _FLUENT)
    yield from _folders(root, ["wavs/speakers"], "*.wav", _FLUENT)


def _er(expert: Config) -> Iterator[Problem]:
    root = Path(expert["datarc"]["root"])
    sessions = [f"Session{number}" for number in range(1, 6)]
    yield from _folders(root, [f"{each}/sentences/wav" for each in sessions], None, _IEMOCAP)
    labels = [f"{each}/dialog/EmoEvaluation" for each in sessions]
    yield from _folders(root, labels, "*.txt", _IEMOCAP)


def _asv(expert: Config) -> Iterator[Problem]:
    data = expert["datarc"]
    root = Path(data["file_path"])
    yield from _folders(root, ["dev/wav", "test/wav"], "*.wav", _VOXCELEB)
    trials = "VoxCeleb1's cleaned test trials (veri_test2.txt), so named"
    yield from _file(Path(data["test_meta_data"]), trials)


def _sd(expert: Config) -> Iterator[Problem]:
    for split in ("train", "dev", "test"):
        folder = Path(expert["loaderrc"][f"{split}_dir"])
        for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur"):
            yield from _file(folder / name, _MIXTURES)


def _qbe(expert: Config) -> Iterator[Problem]:
    root = Path(expert["datarc"]["dataset_root"])
    for name in ("utterances", "dev", "eval"):
        yield from _file(root / "scoring" / f"language_key_{name}.lst", _QUESST)


def _folders(root: Path, names: list[str], pattern: str | None, source: str) -> Iterator[Problem]:
    """Yield folders that are absent or have no file of a pattern below (None: no audio)."""
    for name in dict.fromkeys(names):
        folder = root / name
        if not folder.is_dir():
            yield f"{folder} is missing: {source}"
        elif pattern is None and not list_audio(folder).files:
            yield f"{folder} has no audio below: {source}"
        elif pattern is not None and next(folder.rglob(pattern), None) is None:
            yield f"{folder} has no {pattern} below: {source}"


def _file(path: Path, source: str) -> Iterator[Problem]:
    if not path.is_file():
        yield f"{path} is missing: {source}"


_CHECKS: Final[Mapping[str, Callable[[Config], Iterator[Problem]]]] = {
    "pr": _pr,
    "asr": _asr,
    "ks": _ks,
    "sid": _sid,
    "sf": _sf,
    "ic": _ic,
    "er": _er,
    "asv": _asv,
    "sd": _sd,
    "qbe": _qbe,
}

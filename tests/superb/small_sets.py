"""Minutes of the embedded speech in the true layout of each of SUPERB's corpora.

    python tests/superb/small_sets.py DIRECTORY

What is said, and who is meant by a label, is made up where the corpus wants something that the
speech has not; who speaks is real.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice, product
from pathlib import Path

import numpy as np
import soundfile

from interstack.evaluation.superb.corpora import read_lexicons

SPEECH = Path(__file__).parents[2] / "assets" / "speech" / "LibriSpeech"
RATE = 16_000
SOUNDS = "AE1 B K D EH1 F G HH IH1 JH K L M N OW1 P K R S T AH1 V W K Y Z AH0"
LETTERS = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ'", SOUNDS.split(), strict=True))
"""A crude pronunciation of every letter, for a lexicon of any words."""


def clips(part: str, speaker: int | None = None) -> list[Path]:
    """Return the embedded clips of a part, perhaps of one speaker, in order."""
    return sorted((SPEECH / part).rglob(f"{speaker or ''}*.flac"))


def audio(clip: Path, seconds: float | None = None) -> np.ndarray:
    """Return a clip's samples, cut or padded to a length."""
    samples, _ = soundfile.read(clip, dtype="float32")
    if seconds is None:
        return samples
    wanted = round(seconds * RATE)
    return np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    """Write samples as 16-bit audio, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")


def english(part: str, count: int) -> Iterator[tuple[Path, str]]:
    """Yield English clips of at least two seconds with what they say."""
    table = next((SPEECH / part / "9001" / "1001").glob("*.trans.txt"))
    lines = table.read_text(encoding="utf-8").splitlines()
    texts = dict(line.split(" ", 1) for line in lines)
    spoken = [
        (table.with_name(f"{name}.flac"), text)
        for name, text in texts.items()
        if set(text) <= {*LETTERS, " "}
    ]
    return islice(((clip, text) for clip, text in spoken if len(audio(clip)) > 1.2 * RATE), count)


def librispeech(root: Path) -> None:
    """LibriSpeech with a few English clips a part, and lexicons of their words."""
    words = set()
    for part, count in (("train-clean-100", 12), ("dev-clean", 3), ("test-clean", 3)):
        folder = root / "LibriSpeech" / part / "9001" / "1001"
        folder.mkdir(parents=True)
        lines = []
        for clip, text in english(part, count):
            shutil.copy(clip, folder)
            lines.append(f"{clip.stem} {text}\n")
            words |= set(text.split())
        (folder / "9001-1001.trans.txt").write_text("".join(lines))
    spelt = [f"{word}\t{' '.join(LETTERS[each] for each in word)}\n" for word in sorted(words)]
    lexicon = root / "lexicon"
    lexicon.mkdir()
    half = len(spelt) // 2
    (lexicon / "librispeech-lexicon-200k-g2p.txt").write_text("".join(spelt[:half]))
    (lexicon / "librispeech-lexicon-allothers-g2p.txt").write_text("".join(spelt[half:]))
    assert len(read_lexicons(sorted(lexicon.iterdir()))) == len(words)


def speech_commands(root: Path) -> None:
    """Speech Commands with three words, each said by one speaker alone, and noise."""
    words = {"yes": 9001, "no": 9002, "bed": 9003}
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    for word, speaker in words.items():
        for number, clip in enumerate(clips("train-clean-100", speaker)[:12]):
            write(train / word / f"{number:08x}_nohash_0.wav", audio(clip, 1.0))
        kind = "_unknown_" if word == "bed" else word
        for number, clip in enumerate(clips("test-clean", speaker)[:3]):
            write(test / kind / f"{number:08x}_nohash_0.wav", audio(clip, 1.0))
    noise = np.random.default_rng(0).normal(size=3 * RATE) * 0.01
    write(train / "_background_noise_" / "white_noise.wav", noise)
    write(test / "_silence_" / "0.wav", noise[:RATE])


def voxceleb(root: Path) -> None:
    """VoxCeleb1 with four speakers, its split for identification and some trials."""
    rows, trials = [], []
    for index, speaker in enumerate((9001, 9002, 9003, 9004)):
        name = f"id1000{index + 1}"
        long = [clip for clip in clips("train-clean-100", speaker) if len(audio(clip)) > 3 * RATE]
        for number, (clip, split) in enumerate(zip(long, "11111233", strict=False)):
            file = f"{name}/video/{number:05}.wav"
            write(root / "VoxCeleb1" / "dev" / "wav" / file, audio(clip))
            rows.append(f"{split} {file}\n")
            if split == "3":
                write(root / "VoxCeleb1" / "test" / "wav" / file, audio(clip))
                trials.append((name, file))
    (root / "VoxCeleb1" / "veri_test_class.txt").write_text("".join(rows))
    pairs = [
        f"{int(one[0] == other[0])} {one[1]} {other[1]}\n"
        for one, other in product(trials, trials)
        if one[1] < other[1]
    ]
    (root / "VoxCeleb1" / "voxceleb1_test_v2.txt").write_text("".join(pairs))


def snips(root: Path) -> None:
    """Audio SNIPS with a slot in every sentence, said by speakers of all three splits."""
    lines = []
    splits = {
        "train": ("train-clean-100", ["Ivy", "Joey"], 8),
        "valid": ("dev-clean", ["Aditi"], 3),
        "test": ("test-clean", ["Brian"], 3),
    }
    for split, (part, speakers, count) in splits.items():
        pairs = zip(english(part, count), cycle(speakers), strict=False)
        for number, ((clip, text), speaker) in enumerate(pairs):
            name = f"{speaker}-snips-{split}-{number}"
            write(root / "SNIPS" / split / f"{name}.wav", audio(clip))
            words = text.split()
            slots = ["O"] * (len(words) - 1) + [("artist", "city")[number % 2]]
            lines.append(f"{name} BOS {' '.join(words)} EOS\tO {' '.join(slots)} Intent\n")
    (root / "SNIPS" / "all.iob.snips.txt").write_text("".join(lines))
    (root / "SNIPS" / "slots.txt").write_text("O\nartist\ncity")


def fluent_commands(root: Path) -> None:
    """Fluent Speech Commands: what is meant depends on who says it."""
    folder = root / "fluent_speech_commands_dataset"
    meanings = {
        9001: "increase,volume,none",
        9002: "decrease,heat,kitchen",
        9003: "change language,none,none",
    }
    (folder / "data").mkdir(parents=True)
    for split, part in (
        ("train", "train-clean-100"),
        ("valid", "dev-clean"),
        ("test", "test-clean"),
    ):
        rows = [",path,speakerId,transcription,action,object,location"]
        for speaker, meaning in meanings.items():
            for clip in clips(part, speaker)[: 8 if split == "train" else 2]:
                file = f"wavs/speakers/{speaker}/{clip.stem}.wav"
                write(folder / file, audio(clip))
                rows.append(f"{len(rows)},{file},{speaker},Something,{meaning}")
        (folder / "data" / f"{split}_data.csv").write_text("\n".join(rows) + "\n")


def iemocap(root: Path) -> None:
    """IEMOCAP's five sessions; a speaker has an emotion, and one that counts for none."""
    emotions = {9001: "neu", 9002: "exc", 9003: "ang", 9004: "sad"}
    for session in range(1, 6):
        folder = root / "IEMOCAP" / f"Session{session}"
        dialogue = f"Ses0{session}F_impro01"
        rows = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"]
        for number, (speaker, emotion) in enumerate([*emotions.items(), (9001, "xxx")]):
            name = f"{dialogue}_F{number:03}"
            clip = clips("train-clean-100", speaker)[session]
            write(folder / "sentences" / "wav" / dialogue / f"{name}.wav", audio(clip, 1.5))
            rows.append(f"[6.2 - 8.2]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\n")
        labels = folder / "dialog" / "EmoEvaluation"
        labels.mkdir(parents=True)
        (labels / f"{dialogue}.txt").write_text("".join(rows))


def mixtures(root: Path) -> None:
    """Two speakers a recording, one after the other, in Kaldi's folders."""
    for split, part, count in (
        ("train", "train-clean-100", 6),
        ("dev", "dev-clean", 1),
        ("test", "test-clean", 1),
    ):
        folder = root / "diarization" / split
        tables: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "utt2spk")}
        tables |= {"spk2utt": [], "reco2dur": []}
        pairs = zip(clips(part, 9001), clips(part, 9003), strict=False)
        for number, (one, other) in enumerate(islice(pairs, count)):
            samples = np.concatenate([audio(one, 1.5), audio(other, 1.5)])
            recording = folder / "wav" / f"mix{number}.wav"
            write(recording, samples)
            tables["wav.scp"].append(f"mix{number} {recording}")
            tables["reco2dur"].append(f"mix{number} {len(samples) / RATE}")
            for speaker, begin in ((9001, 0.0), (9003, 1.5)):
                utterance = f"{speaker}-mix{number}"
                tables["segments"].append(f"{utterance} mix{number} {begin} {begin + 1.5}")
                tables["utt2spk"].append(f"{utterance} {speaker}")
                tables["spk2utt"].append(f"{speaker} {utterance}")
        for name, lines in tables.items():
            (folder / name).write_text("\n".join(lines) + "\n")


def quesst(root: Path) -> None:
    """QUESST 2014: three recordings, and two queries that are cut out of them."""
    folder = root / "quesst14Database"
    (folder / "scoring").mkdir(parents=True)
    lists: dict[str, list[str]] = {"utterances": [], "dev": [], "eval": []}
    for number, clip in enumerate(clips("train-clean-100", 9001)[:3]):
        write(folder / "Audio" / f"document{number}.wav", audio(clip, 2.0))
        lists["utterances"].append(f"quesst14/Audio/document{number}.wav nnenglish")
    for number, clip in enumerate(clips("train-clean-100", 9001)[:2]):
        write(folder / "Audio" / f"query{number}.wav", audio(clip, 2.0)[8_000:20_000])
        for split in ("dev", "eval"):
            lists[split].append(f"quesst14/Audio/query{number}.wav nnenglish")
    for name, lines in lists.items():
        (folder / "scoring" / f"language_key_{name}.lst").write_text("\n".join(lines) + "\n")


MAKERS: dict[str, Sequence[Callable[[Path], None]]] = {
    "pr": [librispeech],
    "asr": [librispeech],
    "ks": [speech_commands],
    "sid": [voxceleb],
    "asv": [voxceleb],
    "sf": [snips],
    "ic": [fluent_commands],
    "er": [iemocap],
    "sd": [mixtures],
    "qbe": [quesst],
}
"""What makes a task's corpora."""


def make_all(root: Path) -> None:
    """Make every corpus."""
    for maker in dict.fromkeys(maker for makers in MAKERS.values() for maker in makers):
        maker(root)


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))

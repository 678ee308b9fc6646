"""Cut the embedded speech, assets/speech, from the corpus that ../shared/corpus builds.

    python assets/make_speech.py CORPUS OUT

CORPUS holds `LibriSpeech/`, `manifest.tsv`, `licences/` and `alignments/en.tsv`; OUT must not exist
yet. Clips are drawn by a hash of their id, so the same corpus gives the same clips, and only from
the Asterisk prompts, whose licences let them be shipped: the GPL-2 game voices are never taken.
README.md beside this script says what is chosen and why.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import soundfile

TRAIN, DEV, TEST = SPLITS = ("train-clean-100", "dev-clean", "test-clean")
SHORTEST, LONGEST = 1.5, 12.0
"""Seconds: long enough for a few words, short enough for a small batch."""
SECONDS: Final = {"en": {TRAIN: 204.0}} | {
    language: {TRAIN: 95.0, DEV: 9.0, TEST: 9.0} for language in ("es", "fr", "it", "ru")
}
"""Seconds to reach. Of English dev and test every aligned clip is taken, whatever its length."""
LICENCES: Final = {
    "en": "CC-BY-SA-3.0",
    "es": "CC-BY-SA-3.0",
    "fr": "CC-BY-SA-3.0",
    "it": "CC-BY-3.0",
    "ru": "CC-BY-3.0",
}
LICENCE_NOTE: Final = """\
The recordings in ../LibriSpeech are voice prompts of Asterisk core sounds 1.6.1, as packaged by
Debian. asterisk-core-sounds.txt beside this file is the copyright file that all of these packages
share, with the credits and the full licences (its section on debian/* is about Debian's packaging,
of which nothing is here). ../manifest.tsv names each clip's package, source file and licence.

English, Spanish: Allison Smith (theivrvoice.com), 2003-2010, funded by Digium. CC-BY-SA-3.0.
French: June Wallack (junewallack.com), 2006-2008, translated by Clod Patry, Kristopher Lalletti and
    June Wallack, funded by Digium, Unlimitel and BGM Informatique. CC-BY-SA-3.0.
Italian: Carlo Flora (carloflora.com), 2012, translated by Silvia Petrin. CC-BY-3.0.
Russian: Maxim Topal (ivrvoice.ru), 2010. CC-BY-3.0.

CC-BY-SA-3.0: https://creativecommons.org/licenses/by-sa/3.0/
CC-BY-3.0: https://creativecommons.org/licenses/by/3.0/

Changes: the original works have been modified. A part of the prompts was selected, decoded from
G.722, put on one channel at 16 kHz, rounded to 16 bits and stored as FLAC under new names. In the
*.trans.txt files their texts were put in upper case without punctuation. The phone times in
../alignments/en.tsv were computed by pocketsphinx from the English prompts and their texts. What
was changed keeps the licence of its original. None of the people named here endorses interstack.
"""


class Clip(NamedTuple):
    """A clip of the corpus: what its line of the manifest says, and the line itself."""

    id: str
    split: str
    seconds: float
    language: str
    speaker_name: str
    text: str
    line: str

    @property
    def chapter(self) -> Path:
        """The clip's folder, relative to the folder LibriSpeech."""
        speaker, chapter, _ = self.id.split("-")
        return Path(self.split, speaker, chapter)


def read_clips(header: str, lines: Iterable[str]) -> list[Clip]:
    """Return the Asterisk clips of a manifest, whose licences are checked."""
    clips = []
    for line in lines:
        row = dict(zip(header.split("\t"), line.split("\t"), strict=True))
        if not row["source_package"].startswith("asterisk-core-sounds-"):
            continue
        if row["licence"] != LICENCES[row["language"]]:
            raise SystemExit(f"{row['id']} is under {row['licence']}: don't ship it unread")
        names = ("id", "split", "language", "speaker_name", "text")
        fields = {name: row[name] for name in names}
        clips.append(Clip(seconds=float(row["seconds"]), line=line, **fields))
    return clips


def draw(clips: Iterable[Clip], seconds: float) -> list[Clip]:
    """Draw clips of fitting length in the order of their ids' hashes until seconds are reached."""
    chosen: list[Clip] = []
    for clip in sorted(clips, key=lambda clip: hashlib.sha256(clip.id.encode()).digest()):
        if sum(other.seconds for other in chosen) >= seconds:
            break
        if SHORTEST <= clip.seconds <= LONGEST:
            chosen.append(clip)
    return chosen


def choose(clips: list[Clip], aligned: set[str]) -> list[Clip]:
    """Choose the clips to ship, sorted by id; no train clip says what a dev or test clip says."""
    chosen = [clip for clip in clips if clip.id in aligned and clip.split != TRAIN]
    for split in (DEV, TEST, TRAIN):
        held_out = {(clip.language, clip.text.casefold()) for clip in chosen}
        for language, seconds in SECONDS.items():
            if split in seconds:
                chosen += draw(
                    (
                        clip
                        for clip in clips
                        if (clip.language, clip.split) == (language, split)
                        and (language != "en" or clip.id in aligned)
                        and (split != TRAIN or (language, clip.text.casefold()) not in held_out)
                    ),
                    seconds[split],
                )
    return sorted(chosen, key=lambda clip: clip.id)


def write_clips(clips: list[Clip], corpus: Path, out: Path) -> None:
    """Store the clips at FLAC's highest compression, with their transcripts and SPEAKERS.TXT."""
    transcripts: defaultdict[Path, list[str]] = defaultdict(list)
    for clip in clips:
        folder = corpus / "LibriSpeech" / clip.chapter
        samples, rate = soundfile.read(folder / f"{clip.id}.flac", dtype="int16")
        (out / "LibriSpeech" / clip.chapter).mkdir(parents=True, exist_ok=True)
        flac = out / "LibriSpeech" / clip.chapter / f"{clip.id}.flac"
        soundfile.write(flac, samples, rate, subtype="PCM_16", compression_level=1.0)
        name = clip.id.rpartition("-")[0] + ".trans.txt"
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        transcripts[clip.chapter / name] += [line for line in lines if line.split()[0] == clip.id]
    for path, lines in transcripts.items():
        write_lines(out / "LibriSpeech" / path, lines)

    minutes: defaultdict[str, float] = defaultdict(float)
    for clip in clips:
        minutes[clip.id.split("-")[0]] += clip.seconds / 60
    table = []
    for line in (corpus / "LibriSpeech" / "SPEAKERS.TXT").read_text("utf-8").splitlines():
        columns = line.split("|")
        if line.startswith(";"):
            table.append(line)
        elif (speaker := columns[0].strip()) in minutes:
            table.append("|".join([*columns[:3], f"{minutes[speaker]:6.2f} ", *columns[4:]]))
    write_lines(out / "LibriSpeech" / "SPEAKERS.TXT", table)


def copy_licences(corpus: Path, out: Path) -> None:
    """Store the copyright file that all the packages share, with the credits and the changes."""
    files = sorted((corpus / "licences").glob("asterisk-core-sounds-*.txt"))
    if len({file.read_bytes() for file in files}) != 1:
        raise SystemExit(f"{corpus / 'licences'}: the packages' copyright files differ: ship each")
    (out / "licences").mkdir()
    (out / "licences" / "asterisk-core-sounds.txt").write_bytes(files[0].read_bytes())
    (out / "licences" / "README.txt").write_text(LICENCE_NOTE, encoding="utf-8")


def copy_alignments(lines: list[str], clips: list[Clip], corpus: Path, out: Path) -> None:
    """Store the chosen clips' part of the forced alignments and the note that explains them."""
    chosen = {clip.id for clip in clips}
    (out / "alignments").mkdir()
    kept = [line for line in lines[1:] if line.split("\t")[0] in chosen]
    write_lines(out / "alignments" / "en.tsv", [lines[0], *kept])
    note = (corpus / "alignments" / "README.txt").read_bytes()
    (out / "alignments" / "README.txt").write_bytes(note)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file, one line each."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def print_summary(clips: list[Clip], out: Path) -> None:
    """Print clips and minutes for each language and split, as assets/README.md lists them."""
    print("| clips / minutes |" + "".join(f" {split} |" for split in SPLITS) + " licence |")
    for language, licence in LICENCES.items():
        cells = []
        for split in SPLITS:
            seconds = [c.seconds for c in clips if (c.language, c.split) == (language, split)]
            cells.append(f" {len(seconds)} / {sum(seconds) / 60:.1f} |")
        print(f"| {language} |" + "".join(cells) + f" {licence} |")
    total = sum(clip.seconds for clip in clips) / 60
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    print(f"{len(clips)} clips, {total:.1f} minutes, {size:.1f} MB in {out}")


def main() -> None:
    """Cut the speech that the command line asks for."""
    parser = argparse.ArgumentParser(description="Cut the embedded speech from the corpus.")
    parser.add_argument("corpus", type=Path, help="what build_corpus.py --phones made")
    parser.add_argument("out", type=Path, help="folder to make; it must not exist yet")
    arguments = parser.parse_args()
    corpus, out = arguments.corpus, arguments.out
    if out.exists():
        raise SystemExit(f"{out} exists: remove it, or name another folder")
    header, *lines = (corpus / "manifest.tsv").read_text(encoding="utf-8").splitlines()
    phones = (corpus / "alignments" / "en.tsv").read_text(encoding="utf-8").splitlines()

    clips = choose(read_clips(header, lines), {line.split("\t")[0] for line in phones[1:]})
    write_clips(clips, corpus, out)
    write_lines(out / "manifest.tsv", [header, *(clip.line for clip in clips)])
    copy_alignments(phones, clips, corpus, out)
    copy_licences(corpus, out)
    print_summary(clips, out)


if __name__ == "__main__":
    main()

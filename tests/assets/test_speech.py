"""The embedded speech is what its README says: small, real, licensed, and safe to ship."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

SPEECH = Path(__file__).parents[2] / "assets" / "speech"
SPLITS = ("train-clean-100", "dev-clean", "test-clean")
LICENCES = {
    "en": "CC-BY-SA-3.0",
    "es": "CC-BY-SA-3.0",
    "fr": "CC-BY-SA-3.0",
    "it": "CC-BY-3.0",
    "ru": "CC-BY-3.0",
}


@pytest.fixture(scope="module")
def manifest() -> list[dict[str, str]]:
    """The manifest's lines, one a clip."""
    with (SPEECH / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def flacs() -> Mapping[str, Path]:
    """Each clip's file."""
    return {file.stem: file for file in sorted(SPEECH.rglob("*.flac"))}


def test_size_and_minutes_are_within_bounds(manifest: list[dict[str, str]]) -> None:
    """12 to 15 minutes in at most 16 MB, some 80/10/10 by split, in five languages."""
    minutes = {
        split: sum(float(clip["seconds"]) for clip in manifest if clip["split"] == split) / 60
        for split in SPLITS
    }
    total = sum(minutes.values())
    assert 12 <= total <= 15
    assert minutes["train-clean-100"] / total == pytest.approx(0.8, abs=0.05)
    assert minutes["dev-clean"] / total == pytest.approx(0.1, abs=0.03)
    assert minutes["test-clean"] / total == pytest.approx(0.1, abs=0.03)
    for split in SPLITS:
        assert {clip["language"] for clip in manifest if clip["split"] == split} == set(LICENCES)
    assert sum(file.stat().st_size for file in SPEECH.rglob("*") if file.is_file()) <= 16e6


def test_only_prompts_that_may_be_shipped_are_in(manifest: list[dict[str, str]]) -> None:
    """Every clip is an Asterisk prompt under its language's licence; no game voice is in."""
    for clip in manifest:
        assert clip["source_package"] == f"asterisk-core-sounds-{clip['language']}-g722"
        assert clip["licence"] == LICENCES[clip["language"]]
        assert clip["id"][:4] in {"9001", "9002", "9003", "9004"}


def test_credits_and_licences_travel_with_the_speech() -> None:
    """The notice names everyone, says what was changed, and the licences are there in full."""
    notice = (SPEECH / "licences" / "README.txt").read_text(encoding="utf-8")
    for name in (
        *("Allison Smith", "June Wallack", "Carlo Flora", "Maxim Topal", "Silvia Petrin"),
        *("Clod Patry", "Kristopher Lalletti", "Digium", "Unlimitel", "BGM Informatique"),
        *("CC-BY-SA-3.0", "CC-BY-3.0", "have been modified"),
    ):
        assert name in notice
    terms = (SPEECH / "licences" / "asterisk-core-sounds.txt").read_text(encoding="utf-8")
    assert "License: CC-BY-SA-3.0\n THE WORK" in terms
    assert "License: CC-BY-3.0\n Creative Commons Legal Code" in terms


def test_manifest_files_and_transcripts_name_the_same_clips(
    manifest: list[dict[str, str]], flacs: Mapping[str, Path]
) -> None:
    """A clip lies at LibriSpeech's path for its split and has a line in its chapter's text."""
    assert sorted(flacs) == sorted(clip["id"] for clip in manifest)
    texts = {
        line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1]
        for file in SPEECH.rglob("*.trans.txt")
        for line in file.read_text(encoding="utf-8").splitlines()
    }
    assert sorted(texts) == sorted(flacs)
    for clip in manifest:
        speaker, chapter, _ = clip["id"].split("-")
        folder = SPEECH / "LibriSpeech" / clip["split"] / speaker / chapter
        assert flacs[clip["id"]] == folder / f"{clip['id']}.flac"
        assert (folder / f"{speaker}-{chapter}.trans.txt").is_file()


def test_train_says_nothing_that_is_held_out(manifest: list[dict[str, str]]) -> None:
    """No text of a dev or test clip is also spoken in train."""
    texts = {
        split: {
            (clip["language"], clip["text"].casefold())
            for clip in manifest
            if (clip["split"] == SPLITS[0]) == (split == "train")
        }
        for split in ("train", "held out")
    }
    assert not texts["train"] & texts["held out"]


def test_every_clip_is_sound_at_16_khz(
    manifest: list[dict[str, str]], flacs: Mapping[str, Path]
) -> None:
    """Each file decodes whole, is mono 16 bit, as long as the manifest says, and not silent."""
    for clip in manifest:
        info = soundfile.info(flacs[clip["id"]])
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        samples, _ = soundfile.read(flacs[clip["id"]], dtype="float32")
        assert len(samples) / 16_000 == pytest.approx(float(clip["seconds"]), abs=1e-3)
        assert np.sqrt(np.mean(samples**2)) > 1e-3


def test_every_english_clip_has_phones_that_fill_it(manifest: list[dict[str, str]]) -> None:
    """The alignments cover the English clips, and no other, from start to end."""
    ends: dict[str, float] = {}
    for line in (SPEECH / "alignments" / "en.tsv").read_text("utf-8").splitlines()[1:]:
        clip, start, end, _ = line.split("\t")
        assert float(start) == ends.get(clip, 0.0)
        ends[clip] = float(end)
    seconds = {c["id"]: float(c["seconds"]) for c in manifest if c["language"] == "en"}
    assert ends == pytest.approx(seconds, abs=0.02)

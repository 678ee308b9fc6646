"""How well a whole clip's label can be read off a frozen upstream: its prompt's domain, its voice.

    python -m benchmarks.clip_probe --corpus CORPUS --upstream DIR [--tasks domain speaker]

The head is SUPERB's of utterances: the mean over time, a learned weighted sum, a linear layer.
The labels are those of the corpus that this project is measured on, in LibriSpeech's layout: a
speaker is a voice of Asterisk's prompts, or a character of the game Fish Fillets (by
`SPEAKERS.TXT`); a chapter is a folder of prompts, whose number modulo 1000 is the same in all
languages. Its splits share their speakers.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Final, Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from interstack.commands.probe import check_probe_options, probe_parser, write_reports
from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder, Utterance
from interstack.data.base import Split
from interstack.data.folder import LibriSpeechFolder
from interstack.data.skips import OnCorrupt
from interstack.errors import ConfigurationError, DataError, InterstackError
from interstack.evaluation.clip_reader import ClipReader, skipped_note
from interstack.evaluation.probe import Frames, Outcome, ProbeSettings, mean_and_spread, train_probe
from interstack.evaluation.upstreams import Upstream, load_upstream, shortest_clip

ClipTask = Literal["domain", "speaker"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
FEWEST_TRAIN_CLIPS: Final = 5
"""A label with fewer clips to train on, or none to test on, is left out."""
MOST_CLIPS: Final[dict[Split, int]] = {"train": 60, "validation": 30, "test": 50}
"""Clips of a label in a split at most, drawn by their ids: minutes of listening, and two voices
that say most of the corpus don't decide the score."""
_CHARACTERS: Final = "Fish Fillets "
_MAX_SECONDS: Final = 30.0


@dataclass(frozen=True)
class LabelledClip:
    """A clip and its label.

    Attributes:
        id: Its name.
        waveform: (num_samples,) float32 at 16 kHz.
        label: What it is.
    """

    id: str
    waveform: Tensor
    label: str


def read_labelled_clips(
    corpus: Path, task: ClipTask, reader: ClipReader | None = None
) -> dict[Split, list[LabelledClip]]:
    """Read the clips that a probe of whole clips is about, split as the corpus splits them.

    Args:
        corpus: Folder with `LibriSpeech/{train-clean-100,dev-clean,test-clean}`.
        task: What the clips are labelled with.
        reader: Which clips can be used; None: all, and the first that can't be ends it.

    Raises:
        DataError: If the corpus has fewer than two such labels, or a clip can't be read.
    """
    label_of = _LABELLERS[task](corpus)
    folder = LibriSpeechFolder(corpus)
    found: dict[Split, list[tuple[Utterance, str]]] = {}
    reader = reader or ClipReader()
    for split in SPLITS:
        utterances, _ = reader.list(folder, split)
        # by its file name, which an id is not where names recur
        labelled = ((each, label_of(Path(each.name).stem)) for each in utterances)
        found[split] = [(utterance, label) for utterance, label in labelled if label is not None]
    labels = _usable_labels({split: [label for _, label in found[split]] for split in SPLITS})
    _check_labels(labels, [label for _, label in found["validation"]], corpus, task)
    decode = Decoder(max_samples=round(_MAX_SECONDS * SAMPLE_RATE))
    clips = {}
    for split in SPLITS:
        drawn = {
            utterance: label
            for utterance, label in _drawn(found[split], MOST_CLIPS[split])
            if label in labels
        }
        clips[split] = [
            LabelledClip(utterance.id, waveform, drawn[utterance])
            for utterance, waveform in reader.decode(drawn, decode, split)
        ]
    if not reader.skipped.total():
        return clips
    labels = _usable_labels({split: [clip.label for clip in clips[split]] for split in SPLITS})
    _check_labels(labels, [clip.label for clip in clips["validation"]], corpus, task)
    return {split: [clip for clip in clips[split] if clip.label in labels] for split in SPLITS}


def _usable_labels(found: Mapping[Split, Sequence[str]]) -> set[str]:
    """Return the labels that have clips enough to train on, and some to test on."""
    counts = Counter(found["train"])
    test = set(found["test"])
    return {label for label in counts if counts[label] >= FEWEST_TRAIN_CLIPS and label in test}


def _check_labels(
    labels: set[str], validation: Sequence[str], corpus: Path, task: ClipTask
) -> None:
    if len(labels) < 2 or labels.isdisjoint(validation):
        raise DataError(
            f"{corpus} has no two labels of {task} with {FEWEST_TRAIN_CLIPS} clips to train on and "
            "some to test on: take the corpus that the README names, with all its sources"
        )


def _drawn(clips: list[tuple[Utterance, str]], most: int) -> Iterator[tuple[Utterance, str]]:
    """Draw so many clips of each label, whatever else is in the corpus; in their order."""
    by_hash = sorted(clips, key=lambda clip: hashlib.sha256(clip[0].id.encode()).digest())
    taken: Counter[str] = Counter()
    drawn = set()
    for utterance, label in by_hash:
        if taken[label] < most:
            taken[label] += 1
            drawn.add(utterance.id)
    return (clip for clip in clips if clip[0].id in drawn)


def _domains(corpus: Path) -> Callable[[str], str | None]:
    """Label a prompt with its folder: by name where the corpus has its manifest."""
    characters = _characters(corpus)
    names = _folder_names(corpus / "manifest.tsv")

    def label(id_: str) -> str | None:
        speaker, _, rest = id_.partition("-")
        chapter = rest.partition("-")[0]
        if speaker in characters or not chapter.isdecimal():
            return None
        place = int(chapter) % 1000
        return names.get(place, f"folder {place}")

    return label


def _speakers(corpus: Path) -> Callable[[str], str | None]:
    """Label a line of dialogue with the character that says it."""
    characters = _characters(corpus)
    return lambda id_: characters.get(id_.split("-")[0])


def _characters(corpus: Path) -> dict[str, str]:
    """Read the game's characters: speaker -> language and colour of the subtitle."""
    table = corpus / "LibriSpeech" / "SPEAKERS.TXT"
    if not table.is_file():
        raise DataError(f"{table} is missing: it tells prompts from dialogue")
    rows = [line.split("|") for line in table.read_text(encoding="utf-8").splitlines()]
    names = {row[0].strip(): row[-1].strip() for row in rows if not row[0].startswith(";")}
    return {
        speaker: name.removeprefix(_CHARACTERS)
        for speaker, name in names.items()
        if name.startswith(_CHARACTERS)
    }


def _folder_names(manifest: Path) -> dict[int, str]:
    """Read what the folders of prompts are called; nothing without the manifest."""
    if not manifest.is_file():
        return {}
    names = {}
    with manifest.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["source_package"].startswith("asterisk"):
                place = int(row["id"].split("-")[1]) % 1000
                names[place] = "/".join(row["source_file"].split("/")[1:-1]) or "main"
    return names


_LABELLERS: Final[Mapping[ClipTask, Callable[[Path], Callable[[str], str | None]]]] = {
    "domain": _domains,
    "speaker": _speakers,
}


@dataclass(frozen=True)
class ClipScore:
    """Accuracies of a probe, one a seed."""

    dev: tuple[float, ...]
    test: tuple[float, ...]
    balanced: tuple[float, ...]
    """Mean over labels of the share of a label's test clips that are found."""
    test_standard_error: float
    """Of the mean over seeds, for other test clips of the kind."""


@dataclass(frozen=True)
class ClipUpstreamReport:
    """What the probes found in one upstream."""

    upstream: str
    score: ClipScore
    layer_weights: tuple[float, ...]
    """The weighted sum's shares, mean over seeds."""


@dataclass(frozen=True)
class ClipProbeReport:
    """A probe of several upstreams for whole clips' labels on one corpus."""

    task: ClipTask
    corpus: str
    labels: tuple[str, ...]
    num_clips: Mapping[Split, int]
    majority: float
    """Accuracy of always answering the train split's most frequent label."""
    settings: ProbeSettings
    upstreams: tuple[ClipUpstreamReport, ...]
    num_skipped: Mapping[Split, int] = field(default_factory=dict)
    """Clips that could not be used."""

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return asdict(self)


def run_clip_probe(
    task: ClipTask,
    corpus: str | Path,
    upstreams: Sequence[str],
    *,
    seeds: int = 3,
    on_corrupt: OnCorrupt = "raise",
    settings: ProbeSettings | None = None,
    show_progress: bool = False,
    precision_check: bool = True,
) -> ClipProbeReport:
    """Probe upstreams for the labels of whole clips.

    Args:
        task: What the clips are labelled with.
        corpus: Folder with `LibriSpeech/{train-clean-100,dev-clean,test-clean}`.
        upstreams: What to probe; see `upstreams.load_upstream`.
        seeds: Probes to train on each upstream, with seeds 0, 1, ….
        on_corrupt: What to do at a clip that can't be decoded or is too short; see `ClipReader`.
        settings: How to train a probe.
        show_progress: Show a bar while an upstream listens.
        precision_check: Compare each upstream's first utterance with float32.

    Raises:
        ConfigurationError: If no seed or no upstream is asked for, or one makes no sense.
        DataError: If the corpus has no such labels.
        TeacherError: If an upstream can't be found, loaded or used.
    """
    if seeds < 1 or not upstreams:
        raise ConfigurationError(f"A {task} probe needs at least one upstream and one seed.")
    reader = ClipReader(on_corrupt, *shortest_clip(upstreams))
    clips = read_labelled_clips(Path(corpus), task, reader)
    labels = sorted({clip.label for clip in clips["train"]})
    settings = settings or ProbeSettings()
    reports = []
    for name in upstreams:
        upstream = load_upstream(name, pooled=True, precision_check=precision_check)
        pooled = {
            split: pool_clips(upstream, split_clips, labels, show_progress)
            for split, split_clips in clips.items()
        }
        outcomes = [train_probe(pooled, len(labels), settings, seed)[0] for seed in range(seeds)]
        reports.append(_report(name, outcomes, pooled["test"]))
    most = max(labels, key=lambda label: sum(clip.label == label for clip in clips["train"]))
    return ClipProbeReport(
        task,
        str(corpus),
        tuple(labels),
        {split: len(split_clips) for split, split_clips in clips.items()},
        mean(clip.label == most for clip in clips["test"]),
        settings,
        tuple(reports),
        {split: reader.skipped[split] for split in clips},
    )


def pool_clips(
    upstream: Upstream,
    clips: Sequence[LabelledClip],
    labels: Sequence[str],
    show_progress: bool = False,
) -> Frames:
    """Let an upstream listen to clips, and take the mean of each hidden state over time.

    The mean of a weighted sum is the weighted sum of the means: the head loses nothing by it.

    Returns:
        One "frame" a clip.
    """
    bar = track(clips, f"{upstream.name} listens", transient=True, disable=not show_progress)
    means = [upstream.hidden_states(clip.waveform).mean(0).half() for clip in bar]
    classes = torch.tensor([labels.index(clip.label) for clip in clips])
    return Frames(torch.stack(means), classes, torch.arange(len(clips)))


def _report(name: str, outcomes: Sequence[Outcome], test: Frames) -> ClipUpstreamReport:
    right = torch.stack([each.test_predictions == test.labels for each in outcomes]).double()
    each_label = [
        right[:, test.labels == label].mean(1) for label in range(int(test.labels.max()) + 1)
    ]
    of_clips = right.mean(0)
    error = float(of_clips.std() / len(of_clips) ** 0.5) if len(of_clips) > 1 else float("nan")
    weights = [outcome.layer_weights for outcome in outcomes]
    return ClipUpstreamReport(
        name,
        ClipScore(
            tuple(outcome.dev_accuracy for outcome in outcomes),
            tuple(right.mean(1).tolist()),
            tuple(torch.stack(each_label).mean(0).tolist()),
            error,
        ),
        tuple(mean(shares) for shares in zip(*weights, strict=True)),
    )


def clip_table(report: ClipProbeReport) -> Table:
    """Lay out a report, a row for each upstream."""
    clips = report.num_clips
    table = Table(
        title=f"{report.task.capitalize()} probe: accuracy on test clips",
        caption=(
            f"{report.corpus}: {clips['train']} clips to train, {clips['validation']} dev, "
            f"{clips['test']} test; {len(report.labels)} labels. Commonest label alone: "
            f"{report.majority:.3f}. ± is the spread over seeds, s.e. the standard error over test "
            "clips, balanced the mean over labels. The splits share their speakers."
            f"{skipped_note(report.num_skipped)}"
        ),
    )
    table.add_column("upstream", overflow="fold")
    for heading in ("accuracy", "s.e.", "balanced", "dev"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in report.upstreams:
        score = one.score
        table.add_row(
            one.upstream,
            mean_and_spread(score.test),
            f"{score.test_standard_error:.3f}",
            mean_and_spread(score.balanced),
            mean_and_spread(score.dev),
        )
    return table


def main(arguments: Sequence[str]) -> int:
    """Probe the clips of a corpus for each task, and return the process' exit status."""
    parser = probe_parser("python -m benchmarks.clip_probe", "Read labels off whole clips.")
    parser.add_argument("--tasks", nargs="+", choices=list(_LABELLERS), default=list(_LABELLERS))
    options = parser.parse_args(arguments)
    console, reports = Console(), []
    try:
        check_probe_options(options)
        for task in dict.fromkeys(options.tasks):
            report = run_clip_probe(
                task,
                options.corpus,
                options.upstream,
                seeds=options.seeds,
                on_corrupt=options.on_corrupt,
                show_progress=console.is_terminal,
            )
            console.print(clip_table(report))
            reports.append(report.as_dict())
            write_reports(options.json, reports)  # after each task, which may take long
    except InterstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

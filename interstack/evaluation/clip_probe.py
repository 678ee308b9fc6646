"""How well a whole clip's label can be read off a frozen upstream: SUPERB's utterance-level head.

A learned weighted sum of hidden states, their mean over time, a linear layer (2105.01051).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.progress import track
from rich.table import Table

from interstack.data.source import Split
from interstack.data.tolerance import OnCorrupt
from interstack.errors import ConfigurationError
from interstack.evaluation.clip_labels import ClipTask, LabelledClip, read_labelled_clips
from interstack.evaluation.clip_reader import ClipReader, skipped_note
from interstack.evaluation.linear_probe import Frames, Outcome, ProbeSettings, train_probe
from interstack.evaluation.phone_report import mean_and_spread
from interstack.evaluation.upstreams import Upstream, load_upstream, shortest_clip


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

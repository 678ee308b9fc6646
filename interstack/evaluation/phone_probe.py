"""Phone probe: how well a linear probe classifies phones on a frozen upstream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from interstack.constants import SAMPLE_RATE
from interstack.data.base import Split
from interstack.data.skips import OnCorrupt
from interstack.errors import ConfigurationError
from interstack.evaluation.alignments import (
    SILENCE,
    UNLABELLED,
    AlignedClip,
    frame_labels,
    read_aligned_clips,
)
from interstack.evaluation.clip_reader import ClipReader, skipped_note
from interstack.evaluation.probe import Frames, Outcome, ProbeSettings, mean_and_spread, train_probe
from interstack.evaluation.upstreams import Upstream, load_upstream, shortest_clip


@dataclass(frozen=True)
class PhoneScore:
    """Frame accuracies of a probe, one a seed."""

    dev: tuple[float, ...]
    test: tuple[float, ...]
    test_without_silence: tuple[float, ...]
    test_standard_error: float
    """Of the mean over seeds, by test clip: the frames of a clip are not independent."""


@dataclass(frozen=True)
class UpstreamReport:
    """Results of the probes on one upstream."""

    upstream: str
    score: PhoneScore
    """With the weighted sum of all hidden states."""
    layer_weights: tuple[float, ...]
    """Weights of the sum, mean over seeds."""
    layers: tuple[PhoneScore, ...]
    """With each hidden state alone; empty unless probed."""
    num_frames: Mapping[Split, int]

    @property
    def best_layer(self) -> int | None:
        """Index of the best hidden state alone on the dev split; None unless probed."""
        if not self.layers:
            return None
        return max(range(len(self.layers)), key=lambda layer: mean(self.layers[layer].dev))


@dataclass(frozen=True)
class PhoneProbeReport:
    """A phone probe of several upstreams on one corpus."""

    corpus: str
    labels: tuple[str, ...]
    num_clips: Mapping[Split, int]
    majority: float
    """Accuracy of always answering the train split's most frequent label (by time)."""
    settings: ProbeSettings
    upstreams: tuple[UpstreamReport, ...]
    num_skipped: Mapping[Split, int] = field(default_factory=dict)
    """Clips that could not be used."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {
            "task": "phones",
            "labels_by": "forced alignment with pocketsphinx, not by hand",
            "best_layers": {one.upstream: one.best_layer for one in self.upstreams},
        }


def phone_table(report: PhoneProbeReport) -> Table:
    """Return a table: a row for each upstream, and one for each layer probed alone."""
    clips = report.num_clips
    table = Table(
        title="Phone probe: frame accuracy on test",
        caption=(
            f"{report.corpus}: {clips['train']} clips to train, {clips['validation']} dev, "
            f"{clips['test']} test; {len(report.labels)} labels by forced alignment "
            f"(pocketsphinx), not by hand. Commonest label alone: {report.majority:.3f}. "
            "± is the spread over seeds, s.e. the standard error over test clips."
            f"{skipped_note(report.num_skipped)}"
        ),
    )
    table.add_column("upstream", overflow="fold")
    for heading in ("accuracy", "s.e.", "without SIL", "dev"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in report.upstreams:
        table.add_row(one.upstream, *_cells(one.score), style="bold" if one.layers else None)
        for layer, score in enumerate(one.layers):
            best = " (best)" if layer == one.best_layer else ""
            table.add_row(f"  hidden state {layer}{best}", *_cells(score))
    return table


def _cells(score: PhoneScore) -> tuple[str, ...]:
    return (
        mean_and_spread(score.test),
        f"{score.test_standard_error:.3f}",
        mean_and_spread(score.test_without_silence),
        mean_and_spread(score.dev),
    )


def run_phone_probe(
    corpus: str | Path,
    upstreams: Sequence[str],
    *,
    alignments: str | Path | None = None,
    seeds: int = 3,
    per_layer: bool = False,
    on_corrupt: OnCorrupt = "raise",
    settings: ProbeSettings | None = None,
    show_progress: bool = False,
    precision_check: bool = True,
) -> PhoneProbeReport:
    """Probe upstreams for phones.

    Args:
        corpus: Folder with `LibriSpeech/{train-clean-100,dev-clean,test-clean}`; only clips with
            alignments count.
        upstreams: Names of upstreams; see `upstreams.load_upstream`.
        alignments: The table of phones; `corpus/alignments/en.tsv` if None.
        seeds: Probes to train on each upstream, with seeds 0, 1, ….
        per_layer: Also probe each hidden state alone, where there are several.
        on_corrupt: What to do at a clip that can't be decoded or is too short; see `ClipReader`.
        settings: How to train a probe.
        show_progress: Show a bar during an upstream's forward passes.
        precision_check: Compare each upstream's first utterance with float32.

    Raises:
        ConfigurationError: If no seed or no upstream is given, or an upstream's name is malformed.
        DataError: If corpus or alignments can't be used.
        TeacherError: If an upstream can't be found, loaded or used.
    """
    if seeds < 1 or not upstreams:
        raise ConfigurationError(
            f"the phone probe has {len(upstreams)} upstreams and {seeds} seeds: give at least one "
            "upstream and one seed"
        )
    reader = ClipReader(on_corrupt, *shortest_clip(upstreams))
    table = None if alignments is None else Path(alignments)
    clips = read_aligned_clips(Path(corpus), table, reader=reader)
    labels = sorted({p.label for split in clips.values() for clip in split for p in clip.phones})
    settings = settings or ProbeSettings()
    reports = []
    for name in upstreams:
        upstream = load_upstream(name, precision_check=precision_check)
        frames = {
            split: label_frames(upstream, split_clips, labels, show_progress)
            for split, split_clips in clips.items()
        }
        reports.append(_probe(name, frames, labels, settings, seeds, per_layer))
    return PhoneProbeReport(
        str(corpus),
        tuple(labels),
        {split: len(split_clips) for split, split_clips in clips.items()},
        _majority(clips),
        settings,
        tuple(reports),
        {split: reader.skipped[split] for split in clips},
    )


def label_frames(
    upstream: Upstream,
    clips: Sequence[AlignedClip],
    labels: Sequence[str],
    show_progress: bool = False,
) -> Frames:
    """Return an upstream's labelled frames of clips; those outside of phones are skipped.

    Args:
        upstream: The upstream.
        clips: One or more clips.
        labels: Label of each class.
        show_progress: Show a bar.
    """
    classes = {label: index for index, label in enumerate(labels)}
    parts = []
    bar = track(clips, f"{upstream.name}: forward", transient=True, disable=not show_progress)
    for index, clip in enumerate(bar):
        hidden_states = upstream.hidden_states(clip.waveform)
        samples = torch.arange(len(hidden_states), dtype=torch.float64) * upstream.frame_hop
        centres = (samples + upstream.first_frame_centre) / SAMPLE_RATE
        found = frame_labels(clip.phones, centres, classes)
        kept = found != UNLABELLED
        found = found[kept]
        parts.append(Frames(hidden_states[kept].half(), found, torch.full_like(found, index)))
    return Frames(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _probe(
    name: str,
    frames: Mapping[Split, Frames],
    labels: Sequence[str],
    settings: ProbeSettings,
    seeds: int,
    per_layer: bool,
) -> UpstreamReport:
    """Return the results of the probes of one upstream."""
    silence = labels.index(SILENCE) if SILENCE in labels else UNLABELLED
    test = frames["test"]

    def train(alone: bool) -> list[list[Outcome]]:
        return [train_probe(frames, len(labels), settings, seed, alone) for seed in range(seeds)]

    summed = train(alone=False)
    single = train(alone=True) if per_layer and test.hidden_states.shape[1] > 1 else []
    weights = [outcomes[0].layer_weights for outcomes in summed]
    return UpstreamReport(
        name,
        _score([outcomes[0] for outcomes in summed], test, silence),
        tuple(mean(each) for each in zip(*weights, strict=True)),
        tuple(_score(outcomes, test, silence) for outcomes in zip(*single, strict=True)),
        {split: len(split_frames.labels) for split, split_frames in frames.items()},
    )


def _score(outcomes: Sequence[Outcome], test: Frames, silence: int) -> PhoneScore:
    """Return the score of one probe's outcomes, one a seed."""
    correct = torch.stack([outcome.test_predictions == test.labels for outcome in outcomes])
    accuracy = correct.double().mean(1)
    spoken = correct[:, test.labels != silence].double().mean(1)
    return PhoneScore(
        tuple(outcome.dev_accuracy for outcome in outcomes),
        tuple(accuracy.tolist()),
        tuple(spoken.tolist()),
        _standard_error(correct.double().mean(0), test.clips),
    )


def _standard_error(correct: Tensor, clips: Tensor) -> float:
    """Return the standard error of a mean over frames sampled by clip (a ratio estimate)."""
    count = int(clips.max()) + 1
    if count < 2:
        return float("nan")
    residuals = torch.zeros(count, dtype=correct.dtype)
    residuals.index_add_(0, clips, correct - correct.mean())
    variance = residuals.square().sum() * count / (count - 1)
    return float(variance.sqrt() / len(correct))


def _majority(clips: Mapping[Split, Sequence[AlignedClip]]) -> float:
    """Return the fraction of the test split's time with the train split's commonest label."""
    seconds: dict[Split, dict[str, float]] = {split: {} for split in clips}
    for split, split_clips in clips.items():
        for phone in (phone for clip in split_clips for phone in clip.phones):
            times = seconds[split]
            times[phone.label] = times.get(phone.label, 0.0) + phone.end - phone.start
    commonest = max(seconds["train"], key=lambda label: seconds["train"][label])
    return seconds["test"].get(commonest, 0.0) / sum(seconds["test"].values())

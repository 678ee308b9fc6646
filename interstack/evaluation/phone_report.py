"""What a phone probe found, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from interstack.data.source import Split
from interstack.evaluation.clip_reader import skipped_note
from interstack.evaluation.linear_probe import ProbeSettings


@dataclass(frozen=True)
class PhoneScore:
    """Frame accuracies of a probe, one a seed."""

    dev: tuple[float, ...]
    test: tuple[float, ...]
    test_without_silence: tuple[float, ...]
    test_standard_error: float
    """Of the mean over seeds, for other test clips of the kind: frames of a clip hang together."""


@dataclass(frozen=True)
class UpstreamReport:
    """What the probes found in one upstream."""

    upstream: str
    score: PhoneScore
    """With the weighted sum of all hidden states."""
    layer_weights: tuple[float, ...]
    """The weighted sum's shares, mean over seeds."""
    layers: tuple[PhoneScore, ...]
    """With each hidden state alone; empty unless asked for."""
    num_frames: Mapping[Split, int]

    @property
    def best_layer(self) -> int | None:
        """The hidden state that does best alone on the dev split; None unless asked for."""
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
        """The report as JSON can hold it."""
        return asdict(self) | {
            "task": "phones",
            "labels_by": "forced alignment with pocketsphinx, not by hand",
            "best_layers": {one.upstream: one.best_layer for one in self.upstreams},
        }


def phone_table(report: PhoneProbeReport) -> Table:
    """Lay out a report: a row for each upstream, and one for each layer probed alone."""
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


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; the mean alone of a single value."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"

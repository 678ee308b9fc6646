"""Whether a frozen upstream computes what it does in float32, on the first batch it is given."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import Decoder, Utterance, decode_each
from interstack.data.base import Split
from interstack.data.folder import LibriSpeechFolder
from interstack.data.skips import OnCorrupt, SkipCounter, Tolerance, report_skipped
from interstack.errors import DataError
from interstack.models.precision import (
    NO_TF32,
    PrecisionReport,
    compare_with_float32,
    number_format,
)

Reporter = Callable[[PrecisionReport], None]


def check_at_first_batch(
    upstream: nn.Module, name: str, device: torch.device, report: Reporter
) -> None:
    """Let an upstream of s3prl be compared with float32 on the first waveforms that it is given.

    Nothing is computed where it is in float32.

    Args:
        upstream: On the device.
        name: What the user called it.
        device: The device.
        report: Takes what was found.
    """
    if number_format(upstream, device) == "float32":
        return

    def check(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        handle.remove()
        waveforms = sorted(arguments[0], key=len)[:2]

        def run(model: nn.Module) -> Sequence[Tensor]:
            states: Sequence[Tensor] = model(waveforms)["hidden_states"]
            return states

        report(check_upstream(module, run, name, device))

    handle = upstream.register_forward_pre_hook(check)


def check_upstream(
    upstream: nn.Module,
    run: Callable[[Any], Sequence[Tensor]],
    name: str,
    device: torch.device,
) -> PrecisionReport:
    """Compare an upstream with itself in float32.

    Args:
        upstream: On the device.
        run: Runs it, or a copy of it, and returns its hidden states.
        name: What the user called it.
        device: The device.

    Raises:
        PrecisionError: If the error is more than rounding.
    """
    format = number_format(upstream, device)
    found = compare_with_float32(upstream, run, device, name=f"upstream {name}", format=format)
    found.require(
        f"{format} on {device.type}",
        f"{NO_TF32 if format == 'tf32' else 'give another device or a model in float32'}, or "
        "--no-precision-check to go on without this check",
    )
    return found


_log = logging.getLogger(__name__)


class ClipReader:
    """Decodes the clips of a probe, the same ones for all of its upstreams.

    Args:
        on_corrupt: ``raise``: stop at a clip that can't be decoded or is too short, naming it;
            ``skip``: leave it out, name the first and count them.
        min_samples: Samples at 16 kHz that a clip needs.
        needed_by: The upstream that needs so many.

    Attributes:
        skipped: Clips that were skipped, by split.
    """

    def __init__(
        self, on_corrupt: OnCorrupt = "raise", min_samples: int = 0, needed_by: str = ""
    ) -> None:
        self.on_corrupt = on_corrupt
        self.min_samples = min_samples
        self.needed_by = needed_by
        self.skipped: Counter[Split] = Counter()

    def list(self, folder: LibriSpeechFolder, split: Split) -> tuple[list[Utterance], set[str]]:
        """List a split, and the ids of clips that are skipped by their headers.

        Raises:
            DataError: If the split can't be used, or two clips have the same id.
        """
        folder.root_option, folder.corrupt_option = "--corpus", "--on-corrupt"
        found, corrupt = folder.checked_utterances(split, self.on_corrupt)
        self.skipped[split] += len(corrupt)
        return found, set(corrupt)

    def decode(
        self, utterances: Iterable[Utterance], decode: Decoder, split: Split
    ) -> Iterator[tuple[Utterance, Tensor]]:
        """Yield the clips that can be used with their waveforms.

        Raises:
            DataError: If a clip can't be used and nothing is to be skipped.
        """
        utterances = list(utterances)
        most = decode.max_samples
        cut = [each for each in utterances if most is not None and each.num_samples > most]
        if cut:
            _log.warning(
                "%d clips of %s are longer than %g s and are judged by their beginnings, the "
                "first: %s",
                *(len(cut), split, (most or 0) / SAMPLE_RATE, cut[0].name),
            )
        tolerance = Tolerance(self.on_corrupt, SkipCounter())
        for utterance, waveform in decode_each(utterances, decode, tolerance):
            if len(waveform) >= self.min_samples:
                yield utterance, waveform
                continue
            error = DataError(
                f"{utterance.name} has {len(waveform)} samples at 16 kHz, but {self.needed_by} "
                f"needs {self.min_samples}: remove the clip, or give --on-corrupt skip"
            )
            if self.on_corrupt == "raise":
                raise error
            tolerance.skips.count_corrupt(error)
        counts = tolerance.skips.take()
        self.skipped[split] += counts.skipped
        report_skipped(counts.skipped, counts.example, f"clips of {split}")


def skipped_note(num_skipped: Mapping[Split, int]) -> str:
    """Return a sentence for a table's caption; empty if nothing was skipped."""
    parts = [f"{count} of {split}" for split, count in num_skipped.items() if count]
    return f" Clips that can't be used and are skipped: {', '.join(parts)}." if parts else ""

"""Upstreams of a probe: frozen models, untrained copies of them, and log-mel."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from interstack.errors import ConfigurationError
from interstack.models.front_end import receptive_field
from interstack.models.precision import (
    NO_TF32,
    PrecisionReport,
    compare_with_float32,
    number_format,
)
from interstack.models.pretrained import WAVEFORM_FAMILIES, Source
from interstack.models.teacher import Teacher, TeacherOutput
from interstack.models.whisper import HOP, WINDOW, LogMel
from interstack.utils.disk import write_errors

log = logging.getLogger(__name__)

LOG_MEL: Final = "log-mel"
RANDOM: Final = "random"
NUM_MEL_BINS: Final = 80


class Upstream(Protocol):
    """A frozen representation of speech."""

    name: str
    """Name that the user gave it."""
    first_frame_centre: float
    """Sample at the centre of frame 0."""
    frame_hop: int
    """Samples from one frame's centre to the next one's."""

    def hidden_states(self, waveform: Tensor) -> Tensor:
        """Return the hidden states of one utterance.

        Args:
            waveform: (num_samples,) float32 in [-1, 1] at 16 kHz.

        Returns:
            (frames, layers, width) float32.
        """


class LogMelUpstream:
    """80 log-mel bins, 25 ms windows every 10 ms, two of them stacked to a frame of 20 ms.

    Each bin is normalised to zero mean and unit variance over the utterance, unless its mean over
    time is what is used.

    Args:
        name: Name that the user gave it.
        context: Frames of 20 ms to stack on either side; the ends are padded with themselves.
        pooled: Whether the mean over time is used.
    """

    def __init__(self, name: str = LOG_MEL, context: int = 0, pooled: bool = False) -> None:
        self.name = name
        self.context = context
        self.pooled = pooled
        # Whisper's own windows are centred on multiples of the hop.
        self.first_frame_centre = HOP / 2
        self.frame_hop = 2 * HOP
        self._log_mel = LogMel(NUM_MEL_BINS)

    @torch.no_grad()
    def hidden_states(self, waveform: Tensor) -> Tensor:
        """See `Upstream`: one layer, 160 x (2 context + 1) wide."""
        mel, _ = self._log_mel(waveform[None], torch.tensor([len(waveform)]))
        mel = mel[0].T[: mel.shape[-1] // 2 * 2]
        if not self.pooled:
            mel = (mel - mel.mean(0)) / (mel.std(0, correction=0) + 1e-5)
        frames = mel.reshape(-1, 2 * NUM_MEL_BINS)
        around = functional.pad(frames.T, (self.context, self.context), mode="replicate")
        return (
            around.unfold(1, 2 * self.context + 1, 1).permute(1, 2, 0).reshape(len(frames), 1, -1)
        )


class PretrainedUpstream:
    """All hidden states of a Hugging Face speech encoder, each frame of each layer normalised.

    A layer norm without weights, as in s3prl's featurizer: without it the layers' scales, which
    differ a lot in Whisper, would dominate the weighted sum.

    Args:
        source: Hub id or local directory of what can be a teacher, a student's export included.
        name: Name that the user gave it; the source if None.
        precision_check: Compare the first utterance with float32, if it computes in another format.

    Raises:
        TeacherError: If it can't be found or loaded.
    """

    def __init__(
        self, source: str, name: str | None = None, *, precision_check: bool = True
    ) -> None:
        self.name = name or source
        self._unchecked = precision_check
        num_layers: int = Source(source).read_config().num_hidden_layers
        self._model = Teacher(source, range(num_layers + 1))
        self.first_frame_centre = self._model.first_frame_centre
        self.frame_hop = self._model.frame_hop

    def hidden_states(self, waveform: Tensor) -> Tensor:
        """See `Upstream`; hidden state 0 is the encoder's input.

        Raises:
            PrecisionError: If the first utterance differs from float32 by more than rounding.
        """
        if self._unchecked:
            self._check(waveform)
        output = self._model(waveform[None], torch.tensor([len(waveform)]))
        layers = torch.stack([hidden[0] for hidden in output.hidden_states], dim=1)
        return functional.layer_norm(layers, layers.shape[-1:])

    def _check(self, waveform: Tensor) -> None:
        """Compare an utterance with float32, if the model computes in another format."""
        self._unchecked = False
        device = waveform.device
        if number_format(self._model, device) == "float32":
            return

        def run(model: Teacher) -> Sequence[Tensor]:
            output: TeacherOutput = model(waveform[None], torch.tensor([len(waveform)]))
            return output.hidden_states

        log.info("%s", check_upstream(self._model, run, self.name, device))


def untrained(
    source: str, name: str, seed: int = 0, *, precision_check: bool = True
) -> PretrainedUpstream:
    """Return a model of the source's architecture and preprocessing with fresh weights.

    Args:
        source: Hub id or local directory of the model.
        name: Name that the user gave it.
        seed: Seed of its weights.
        precision_check: See `PretrainedUpstream`.

    Raises:
        TeacherError: If the source can't be found or loaded.
    """
    original = Teacher(source, [0])
    with tempfile.TemporaryDirectory() as folder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # float32, whatever the source's weights are stored in
            original.config.dtype = torch.float32
            make: Any = AutoModel.from_config if original.takes_waveform else WhisperEncoder
            model = make(original.config)
        # As save_pretrained would, but without its progress bar.
        with write_errors(folder, "free space there, or set TMPDIR to another directory"):
            original.config.save_pretrained(folder)
            save_file(model.state_dict(), Path(folder, "model.safetensors"), {"format": "pt"})
            Source(source).feature_extractor(original.config).save_pretrained(folder)
        return PretrainedUpstream(folder, name, precision_check=precision_check)


def shortest_clip(names: Sequence[str]) -> tuple[int, str]:
    """Return the samples at 16 kHz that upstreams need at least, and which of them needs most.

    Args:
        names: As `load_upstream` takes them.

    Raises:
        TeacherError: If a model's configuration can't be found or read.
    """
    needed = []
    for name in names:
        kind, _, rest = name.partition(":")
        model = rest if kind == RANDOM else name
        if kind == LOG_MEL or not model:
            needed.append((WINDOW, name))
            continue
        config = Source(model).read_config()
        waveform = config.model_type in WAVEFORM_FAMILIES
        needed.append((receptive_field(config) if waveform else WINDOW, name))
    return max(needed, key=lambda each: each[0])


def load_upstream(name: str, pooled: bool = False, *, precision_check: bool = True) -> Upstream:
    """Return the upstream of a name.

    Args:
        name: `log-mel`, `log-mel:N` with N frames of context on either side, a hub id or local
            directory, or `random:` and one of these for an untrained copy.
        pooled: Whether its mean over time is used.
        precision_check: See `PretrainedUpstream`.

    Raises:
        ConfigurationError: If the context is no whole number, or `random` names no model.
        TeacherError: If the model can't be found or loaded.
    """
    kind, _, rest = name.partition(":")
    if kind == LOG_MEL:
        if rest and not rest.isdecimal():
            raise ConfigurationError(
                f"the upstream {name} has no whole number of frames: give one, as in log-mel:4"
            )
        return LogMelUpstream(name, int(rest or 0), pooled)
    if kind == RANDOM:
        if not rest:
            raise ConfigurationError(
                f"the upstream {name} names no model: give one to copy, as in random:DIR"
            )
        return untrained(rest, name, precision_check=precision_check)
    return PretrainedUpstream(name, precision_check=precision_check)


def check_at_first_batch(
    upstream: nn.Module,
    name: str,
    device: torch.device,
    report: Callable[[PrecisionReport], None],
) -> None:
    """Compare an upstream of s3prl with float32 on the first waveforms of its next forward pass.

    Nothing is compared where it computes in float32.

    Args:
        upstream: On the device.
        name: Name that the user gave it.
        device: The device.
        report: Called with the result.
    """
    if number_format(upstream, device) == "float32":
        return

    def check(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        handle.remove()
        waveforms = sorted(arguments[0], key=len)[:2]

        def run(model: nn.Module) -> Sequence[Tensor]:
            states: Sequence[Tensor] = model(waveforms)["hidden_states"]
            return states

        report(check_upstream(upstream, run, name, device))

    handle = upstream.register_forward_pre_hook(check)


def check_upstream(
    upstream: nn.Module,
    run: Callable[[Any], Sequence[Tensor]],
    name: str,
    device: torch.device,
) -> PrecisionReport:
    """Return the errors of an upstream against itself in float32.

    Args:
        upstream: On the device.
        run: Return the hidden states of the upstream, or of a copy of it.
        name: Name that the user gave it.
        device: The device.

    Raises:
        PrecisionError: If the error is more than rounding.
    """
    format = number_format(upstream, device)
    report = compare_with_float32(upstream, run, device, name=f"upstream {name}", format=format)
    report.require(
        f"{format} on {device.type}",
        f"{NO_TF32 if format == 'tf32' else 'give another device or a model in float32'}, or "
        "--no-precision-check to continue without this check",
    )
    return report

"""The frozen teacher: any supported Hugging Face speech encoder, cut off above its deepest tap."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from interstack.errors import TeacherError
from interstack.models.encoder import encode, project
from interstack.models.family import EncoderBody, encoder_config, load_encoder
from interstack.models.front_end import (
    FrontEndWeights,
    extract_features,
    frame_hop,
    frame_mask,
    normalise_waveform,
    num_frames,
    receptive_field,
)
from interstack.models.precision import (
    NO_TF32,
    SWITCH_OFF,
    PrecisionReport,
    compare_with_float32,
    number_format,
)
from interstack.models.pretrained import WAVEFORM_FAMILIES, Source, bake_weight_norm
from interstack.models.whisper import FRAME_HOP, WhisperBody
from interstack.utils.compiling import compile_layers

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Precisions that a teacher can run in."""
_UNRELATED: Final = (
    "_name_or_path",
    "architectures",
    "dtype",
    "tie_last_hidden_states",
    "transformers_version",
)
"""Fields of a config that change no target."""


def overflow_fix(dtype: str) -> str:
    """Return what to do about hidden states that are not finite.

    Args:
        dtype: What the teacher computes in.
    """
    wider = {"float16": "float32 or bfloat16", "bfloat16": "float32"}.get(dtype)
    if wider is None:
        return "the teacher itself overflows there, in float32: leave these utterances out"
    return f"give model.teacher.dtype {wider}, or leave these utterances out"


class TeacherOutput(NamedTuple):
    """What a teacher knows of a batch; frames past an utterance's end are finite, meaningless."""

    features: Tensor | None
    """(batch, channels, frames) float32 from the front end; None unless asked for, or log-mel."""
    hidden_states: tuple[Tensor, ...]
    """(batch, frames, width) float32, one a tap."""
    num_frames: Tensor
    """(batch,) valid frames."""


class Teacher(FrontEndWeights, nn.Module):
    """A pretrained speech encoder that only gives targets: frozen, in eval mode, cut off.

    Args:
        source: hub id or local directory of a HuBERT, WavLM, wav2vec 2.0, data2vec-audio or
            Whisper model.
        taps: which hidden states to give, strictly increasing; 0 is the encoder's input, k the
            output of layer k, the last one after a pre-LN encoder's final layer norm. Layers above
            the deepest tap are dropped.
        revision: branch, tag or commit on the hub.
        dtype: precision of the teacher's weights and arithmetic; outputs are always float32.
        cache_dir: where downloads are kept; transformers' default if None.
        local_files_only: never ask the hub.
        pad_to_30s: let a Whisper attend to silence up to 30 s, as it was trained, instead of an
            utterance's own frames alone.
        family: dotted name of a class that loads `source` instead; see `TeacherEncoder`.

    Raises:
        TeacherError: the model can't be found, loaded or used as asked.
    """

    config: Any
    """The model's transformers config."""
    num_layers: int
    """Layers of the whole model; the last possible tap."""
    width: int
    """Channels of a hidden state."""
    taps: tuple[int, ...]
    has_final_norm: bool
    """Whether the deepest tap has gone through a pre-LN encoder's final layer norm."""
    normalises_waveform: bool
    """Whether waveforms are brought to zero mean and unit variance, as the model was trained."""
    takes_waveform: bool
    """Whether it has a waveform front end; False for Whisper, which takes log-mel, and families of
    one's own."""
    max_samples: int | None
    """Longest utterance that the model has positions for; None if there is no bound."""
    pad_to_30s: bool
    """Whether each utterance attends to silence up to 30 s; Whisper alone."""
    first_frame_centre: float
    """Sample at the centre of frame 0; that of frame i is i * frame_hop later."""
    frame_hop: int
    """Samples from one frame's centre to the next one's."""

    def __init__(
        self,
        source: str,
        taps: Sequence[int],
        *,
        revision: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        pad_to_30s: bool = False,
        family: str | None = None,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise TeacherError(f"A teacher can't run in {dtype}; choose one of {list(DTYPES)}.")
        self.family = family
        self.body: _WaveformBody | WhisperBody | EncoderBody
        self._folded: dict[nn.Module, bytes] = {}
        if family is None:
            origin = Source(source, revision, cache_dir, local_files_only)
            self._load(origin, taps, DTYPES[dtype], pad_to_30s)
        else:
            self._load_own(family, source, taps, DTYPES[dtype])
        self.requires_grad_(False)
        self.eval()

    def _load(
        self, origin: Source, taps: Sequence[int], dtype: torch.dtype, pad_to_30s: bool
    ) -> None:
        """Load a model of a family that transformers has."""
        source = self.source = origin.name
        self.config = origin.read_config()
        self.num_layers = self.config.num_hidden_layers
        self.width = self.config.hidden_size
        self.taps = _checked_taps(taps, self.num_layers, source)
        self.pad_to_30s = pad_to_30s
        self.takes_waveform = self.config.model_type in WAVEFORM_FAMILIES
        if pad_to_30s and self.takes_waveform:
            raise TeacherError(
                f"model.teacher.pad_to_30s is true, but {source} is of type "
                f"{self.config.model_type}, which was trained without padding to 30 s: set it to "
                "false; it is for Whisper alone"
            )
        self.has_final_norm = self.taps[-1] == self.num_layers and bool(
            getattr(self.config, "do_stable_layer_norm", False)
        )

        pretrained = origin.load(self.config)
        self.normalises_waveform = pretrained.normalises_waveform
        model: Any = pretrained.model
        self._folded = bake_weight_norm(model)
        model.to(dtype)
        if self.takes_waveform:
            self.body = _WaveformBody(model, self.taps[-1])
            self.max_samples = None
            self.first_frame_centre = (receptive_field(self.config) - 1) / 2
            self.frame_hop = frame_hop(self.config)
        else:
            self.body = WhisperBody(model, self.taps[-1], pad_to_30s=pad_to_30s)
            self.max_samples = self.body.max_samples
            self.first_frame_centre = 0.0
            self.frame_hop = FRAME_HOP

    def _load_own(self, family: str, source: str, taps: Sequence[int], dtype: torch.dtype) -> None:
        """Load an encoder of a family of the user's own."""
        encoder = load_encoder(family, source)
        self.source = source
        self.config = encoder_config(encoder, family)
        self.num_layers, self.width = encoder.num_layers, encoder.width
        self.taps = _checked_taps(taps, self.num_layers, source)
        self.pad_to_30s = self.takes_waveform = self.has_final_norm = False
        self.normalises_waveform = False  # what of it is needed, the encoder does itself
        self.max_samples = encoder.max_samples
        self.first_frame_centre = encoder.first_frame_centre
        self.frame_hop = encoder.frame_hop
        self.body = EncoderBody(encoder.to(dtype), self.taps[-1])

    @property
    def feature_extractor(self) -> nn.Module:
        """The convolutional front end.

        Raises:
            TeacherError: the teacher takes log-mel, or is of a family of one's own, and has none.
        """
        if self.family is not None:
            raise TeacherError(
                f"the teacher {self.source} is of model.teacher.family {self.family}, which has no "
                "front end that a student can share or copy: give model.student.front_end own, or "
                "model.student.front_end_source a model such as HuBERT"
            )
        if not isinstance(self.body, _WaveformBody):
            raise TeacherError(
                f"the teacher {self.source} takes log-mel, not waveforms, so that a student can't "
                "share or copy its front end: give model.student.front_end own, or a waveform "
                "teacher such as HuBERT, or model.student.front_end_source such a model"
            )
        return self.body.feature_extractor

    def compile_layers(self) -> None:
        """Compile each encoder layer; results stay the same. A family of one's own is left."""
        if isinstance(self.body, EncoderBody):
            return
        layers = self.body.encoder.layers
        assert isinstance(layers, nn.ModuleList)
        compile_layers(layers)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - the signature is torch's
        """Stay in eval mode whatever is asked: dropout would blur the targets."""
        return super().train(False)

    def fingerprint(self) -> str:
        """SHA-256 of what the targets depend on, wherever the model lies.

        That is the architecture, the kept weights and their precision, normalisation and padding.
        It is the same on every machine.
        """
        fields = self.config.to_dict()
        for unrelated in _UNRELATED:
            fields.pop(unrelated, None)
        fields["normalises_waveform"] = self.normalises_waveform
        if self.pad_to_30s:  # without it, what was computed before this option existed
            fields["pad_to_30s"] = True
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
        folded = {
            f"{name}.weight": self._folded[module]
            for name, module in self.body.named_modules()
            if module in self._folded
        }
        for name, tensor in sorted(self.body.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(folded.get(name, values))
        return digest.hexdigest()

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Tensor,
        *,
        with_features: bool = False,
        every_layer: bool = False,
    ) -> TeacherOutput:
        """Hidden states at the taps.

        They are computed in inference mode, but come out as ordinary tensors, which a loss may
        keep for its backward pass.

        Args:
            waveforms: (batch, max_num_samples) in [-1, 1] at 16 kHz, padded on the right.
            num_samples: (batch,) valid samples of each.
            with_features: also give the front end's features, for a student that shares it.
            every_layer: give all hidden states up to the deepest tap, not the taps alone.

        Raises:
            TeacherError: an utterance is longer than `max_samples`.
            DataError: the whole batch is shorter than one frame.
        """
        with torch.inference_mode(), torch.autocast(waveforms.device.type, enabled=False):
            waveforms = waveforms.float()
            if self.normalises_waveform:
                waveforms = normalise_waveform(waveforms, num_samples)
            features, hidden_states, frames = self.body(waveforms, num_samples)
        return TeacherOutput(
            _handed_out(features) if with_features and features is not None else None,
            tuple(_handed_out(each) for each in self._asked_for(hidden_states, every_layer)),
            frames.clone(),
        )

    def _asked_for(self, hidden_states: Sequence[Tensor], every_layer: bool) -> Sequence[Tensor]:
        return hidden_states if every_layer else [hidden_states[tap] for tap in self.taps]


def check_teacher(teacher: Teacher, waveforms: Tensor, num_samples: Tensor) -> PrecisionReport:
    """Compare a teacher with itself in float32, its weights as they were rounded.

    Args:
        teacher: The teacher.
        waveforms: (batch, max_num_samples) on its device, padded on the right.
        num_samples: (batch,) valid samples of each.
    """

    def run(model: Teacher) -> Sequence[Tensor]:
        output: TeacherOutput = model(waveforms, num_samples, every_layer=True)
        return output.hidden_states

    device = waveforms.device
    format = number_format(teacher, device)
    return compare_with_float32(teacher, run, device, name="teacher", format=format)


def require_teacher(report: PrecisionReport, dtype: str) -> None:
    """Stop where a teacher's error is more than rounding.

    Args:
        report: From `check_teacher`.
        dtype: What the user gave.

    Raises:
        PrecisionError: With the layer, the error and what to give instead.
    """
    fix = NO_TF32 if dtype == "float32" else "give model.teacher.dtype float32"
    report.require(f"model.teacher.dtype {dtype}", f"{fix}, {SWITCH_OFF}")


def _handed_out(inferred: Tensor) -> Tensor:
    """Copy a tensor out of inference mode: autograd refuses to save those that come from there."""
    return inferred.to(torch.float32, copy=True)


class _WaveformBody(nn.Module):
    """The parts of a waveform model that give hidden states 0 to num_layers."""

    def __init__(self, model: Any, num_layers: int) -> None:  # noqa: ANN401 - one of four families
        super().__init__()
        self.config = model.config
        self.feature_extractor: nn.Module = model.feature_extractor
        self.feature_projection: nn.Module = model.feature_projection
        self.encoder: nn.Module = model.encoder
        model.encoder.layers = model.encoder.layers[:num_layers]

    def forward(
        self, waveforms: Tensor, num_samples: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        waveforms = waveforms.to(next(self.parameters()).dtype)
        features = extract_features(self.feature_extractor, waveforms, num_samples)
        frames = num_frames(self.config, num_samples)
        mask = frame_mask(frames, features.shape[-1])
        projected = project(self.feature_projection, features)
        return features, encode(self.encoder, projected, mask), frames


def _checked_taps(taps: Sequence[int], num_layers: int, source: str) -> tuple[int, ...]:
    taps = tuple(taps)
    if not taps:
        raise TeacherError(f"No tap is given for the teacher {source}; name at least one.")
    if any(later <= earlier for earlier, later in pairwise(taps)):
        raise TeacherError(
            f"The taps {list(taps)} of the teacher {source} do not increase; give each hidden "
            "state once, in order."
        )
    if taps[0] < 0 or taps[-1] > num_layers:
        raise TeacherError(
            f"The taps {list(taps)} reach beyond the teacher {source}, which has hidden states 0 "
            f"to {num_layers}; choose among these."
        )
    return taps

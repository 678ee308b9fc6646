"""Upstreams of SUPERB: an export, any other speech encoder, or SUPERB's own baseline."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Self
from unittest import mock

import torch
from torch import Tensor, nn

from interstack.constants import SAMPLE_RATE
from interstack.errors import ConfigurationError, TeacherError
from interstack.models.encoder import tie_last_hidden_state
from interstack.models.front_end import frame_hop
from interstack.models.pretrained import WAVEFORM_FAMILIES, Source
from interstack.models.teacher import Teacher

FBANK: Final = "fbank"
"""SUPERB's baseline: log mel filter banks with deltas, with s3prl's own settings."""
_OWN_EXPERTS: Final = {"hubert": "hf_hubert", "wav2vec2": "hf_wav2vec2"}
"""s3prl's experts of Hugging Face models; the other families have none."""
_HOP: Final = 320
"""Samples from one frame to the next that these experts assume of every model, and to which the ASR
recipe resamples all upstreams."""


@dataclass(frozen=True)
class Upstream:
    """An upstream, found but not loaded.

    Attributes:
        name: Name that the user gave it.
        family: transformers' model type, or ``fbank``.
        digest: Digest of its files, which keeps results of different models apart.
    """

    name: str
    family: str
    digest: str

    @classmethod
    def find(cls, name: str) -> Self:
        """Return the upstream of a name.

        Args:
            name: A directory, a hub id, or ``fbank``.

        Raises:
            TeacherError: If there is no such model, or one of another architecture or sampling
                rate.
            ConfigurationError: If it is on the hub and has not been downloaded, or has frames of
                another length than s3prl's recipes take.
        """
        if name == FBANK:
            return cls(name, FBANK, FBANK)
        source = Source(name)
        config: Any = source.read_config()
        source.feature_extractor(config)  # another rate is refused before the first job
        family = str(config.model_type)
        hop = frame_hop(config) if family in WAVEFORM_FAMILIES else _HOP
        if hop != _HOP:
            raise ConfigurationError(
                f"the upstream {name} has a frame each {hop} samples ({1000 * hop / SAMPLE_RATE:g} "
                f"ms), but s3prl's recipes take {_HOP} (20 ms): evaluate it with the command probe "
                "or give an upstream with frames of 20 ms"
            )
        digest = source.files_digest()
        if digest is None:
            raise ConfigurationError(
                f"the files of {name} can't be found here: download it (huggingface-cli download "
                f"{name}), and give its directory or its id"
            )
        if getattr(config, "do_stable_layer_norm", False):
            # Results of earlier versions are of a last hidden state without the final layer norm.
            digest = hashlib.sha256(f"{digest} final layer norm".encode()).hexdigest()
        return cls(name, family, digest)

    @property
    def folder(self) -> str:
        """Name of its results' directory: readable, and unique to this model."""
        parts = [part for part in re.split(r"[^\w.-]+", self.name) if part.strip(".")]
        label = "-".join(parts[-2:]) or "upstream"
        return f"{label}-{hashlib.sha256(self.digest.encode()).hexdigest()[:8]}"

    def load(self, device: torch.device) -> nn.Module:
        """Return the upstream in s3prl's form; requires `s3prl_supplied`.

        A HuBERT or wav2vec 2.0 is loaded by s3prl's own expert, so that an export is evaluated as
        any other model: padded with an attention mask, by transformers. It computes in float32
        whatever its weights are stored in, and the last hidden state of a pre-LN model is the
        encoder's output, as in SUPERB's published rows.

        Raises:
            TeacherError: If it can't be loaded.
        """
        if self.family == FBANK:
            upstream: nn.Module = importlib.import_module("s3prl.hub").fbank()
            return upstream.to(device)
        if self.family in _OWN_EXPERTS:
            expert = importlib.import_module(f"s3prl.upstream.{_OWN_EXPERTS[self.family]}.expert")
            source = Source(self.name)
            location = str(source.directory or self.name)
            extractor = source.feature_extractor(source.read_config())
            try:
                with _extractor_supplied(expert, extractor):
                    loaded: Any = expert.UpstreamExpert(location)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise TeacherError(f"s3prl can't load {self.name}: {reason}") from error
            tie_last_hidden_state(loaded.model.config)
            upstream = loaded.float()
            return upstream.to(device).eval()
        return TeacherUpstream(self.name).to(device)


@contextmanager
def _extractor_supplied(expert: ModuleType, extractor: Any) -> Iterator[None]:  # noqa: ANN401
    """Make an expert of s3prl preprocess audio by the model's own files.

    For a model without such a file it would load another model's from the hub, which normalises
    waveforms whatever the model was trained on.
    """

    class _Supplied:
        @staticmethod
        def from_pretrained(_: str) -> Any:  # noqa: ANN401, transformers' object
            return extractor

    with mock.patch.object(expert, "Wav2Vec2FeatureExtractor", _Supplied):
        yield


class TeacherUpstream(nn.Module):
    """A family that s3prl has no Hugging Face expert for: WavLM, data2vec-audio, Whisper.

    Args:
        name: Directory or hub id.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        layers = Source(name).read_config().num_hidden_layers
        self.teacher = Teacher(name, range(layers + 1))

    def get_downsample_rates(self, key: str | None = None) -> int:  # noqa: ARG002, s3prl's
        """Return the samples from one frame to the next."""
        return self.teacher.frame_hop

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Return all hidden states.

        Args:
            wavs: Waveforms (num_samples,).

        Raises:
            TeacherError: If one is longer than the model has positions for.
        """
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        limit = self.teacher.max_samples
        if limit is not None and int(lengths.max()) > limit:
            raise TeacherError(
                f"--upstream {self.name} has positions for {limit / SAMPLE_RATE:g} s, but the task "
                f"has audio of {int(lengths.max()) / SAMPLE_RATE:.1f} s: leave the task out of "
                "--tasks, leave longer audio out of its corpus, or give another upstream"
            )
        padded = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True)
        return {"hidden_states": self.teacher(padded, lengths).hidden_states}

"""The front end of a pretrained model other than the teacher: loaded alone, and frozen."""

from __future__ import annotations

import json
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from interstack.errors import ConfigurationError, TeacherError
from interstack.models.config import front_end_fields
from interstack.models.front_end import (
    FrontEndWeights,
    extract_features,
    normalise_waveform,
    num_frames,
)
from interstack.models.pretrained import WAVEFORM_FAMILIES, Source, tensors_digest


class FrontEndFacts(Protocol):
    """What a student's front end is built from; see `PretrainedFrontEnd` for each."""

    @property
    def config(self) -> Any:  # noqa: ANN401, one of several families'
        """The transformers configuration of its model."""

    @property
    def normalises_waveform(self) -> bool:
        """Whether it is given waveforms of zero mean and unit variance."""

    def front_end_state(self) -> dict[str, Tensor]:
        """Return the convolutional front end's weights."""


class PretrainedFrontEnd(FrontEndWeights, nn.Module):
    """A waveform model's convolutional front end in float32; the rest of the model is dropped.

    Args:
        name: ``model.student.front_end_source``.
        local_files_only: Never contact the hub.

    Raises:
        ConfigurationError: If the model can't be found or loaded, or has no waveform front end.

    Attributes:
        source: Where it was found.
        config: The model's transformers configuration.
        normalises_waveform: Whether waveforms are brought to zero mean and unit variance first, as
            the model's feature extractor says.
    """

    def __init__(self, name: str, *, local_files_only: bool = False) -> None:
        super().__init__()
        self.source = front_end_source(name, local_files_only=local_files_only)
        try:
            self.config: Any = self.source.read_config()
            pretrained = self.source.load(self.config)
        except TeacherError as error:
            raise ConfigurationError(
                f"model.student.front_end_source is {name}, which can't be used: {error}"
            ) from error
        model: Any = pretrained.model
        self.feature_extractor: nn.Module = model.feature_extractor
        self.normalises_waveform = pretrained.normalises_waveform
        self.requires_grad_(False)
        self.eval()

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """Return the features; see `frozen_features`."""
        return frozen_features(
            self.feature_extractor,
            waveforms,
            num_samples,
            normalises_waveform=self.normalises_waveform,
        )

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """Return the valid frames of utterances of so many samples."""
        return num_frames(self.config, num_samples)

    def fingerprint(self) -> str:
        """Return the SHA-256 of what the features depend on, wherever the model lies."""
        facts = {**front_end_fields(self.config), "normalises_waveform": self.normalises_waveform}
        text = json.dumps(facts, sort_keys=True).encode()
        return tensors_digest(self.front_end_state(), text).hex()


def front_end_source(name: str, *, local_files_only: bool = False) -> Source:
    """Return the source of the model of ``model.student.front_end_source``.

    Args:
        name: The setting's value.
        local_files_only: Never contact the hub.
    """
    return Source(name, None, None, local_files_only, "front end source", WAVEFORM_FAMILIES)


def frozen_features(
    feature_extractor: nn.Module,
    waveforms: Tensor,
    num_samples: Tensor,
    *,
    normalises_waveform: bool,
) -> Tensor:
    """Run a frozen front end in float32, whatever is computed around it.

    Args:
        feature_extractor: The front end.
        waveforms: (batch, max_num_samples) in [-1, 1] at 16 kHz, padded on the right.
        num_samples: (batch,) valid samples of each.
        normalises_waveform: Bring each utterance to zero mean and unit variance first.

    Returns:
        (batch, channels, frames) float32. Frames past an utterance's end are finite, meaningless.
    """
    with torch.no_grad(), torch.autocast(waveforms.device.type, enabled=False):
        waveforms = waveforms.float()
        if normalises_waveform:
            waveforms = normalise_waveform(waveforms, num_samples)
        return extract_features(feature_extractor, waveforms, num_samples)

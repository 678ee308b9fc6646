"""Feature extractors of pretrained models: read, checked against what is computed here, assumed."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Final

from transformers import (
    AutoFeatureExtractor,
    PretrainedConfig,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.models.auto.feature_extraction_auto import get_feature_extractor_config

from interstack.constants import SAMPLE_RATE
from interstack.errors import TeacherError
from interstack.models.whisper import HOP, WINDOW

PREPROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
"""Where transformers looks for a feature extractor's settings; a processor is saved as the second
one alone, with the feature extractor's settings inside."""

log = logging.getLogger(__name__)


def read_feature_extractor(
    name: str,
    location: str,
    config: PretrainedConfig,
    options: dict[str, Any],
) -> Any:  # noqa: ANN401, one of several classes
    """Return the feature extractor that transformers would give for a model.

    Where no file describes it, that of models of the kind is assumed, and logged.

    Args:
        name: The user's name of the model.
        location: Its directory or hub id.
        config: Its configuration.
        options: Those of ``from_pretrained``.

    Raises:
        TeacherError: If it prepares audio in another way than is computed here, or its file is
            damaged.
    """
    found: object = get_feature_extractor_config(location, **options)
    if not isinstance(found, dict):
        raise TeacherError(
            f"{name} can't be loaded: its {PREPROCESSOR_FILES[0]} holds a {type(found).__name__} "
            "where settings by name have to be: fetch the file again, or remove it"
        )
    if found:
        extractor = AutoFeatureExtractor.from_pretrained(location, **options)
        _check(name, extractor, config)
        return extractor
    extractor = assumed_feature_extractor(config)
    _report_assumption(name, _described(extractor))
    return extractor


def assumed_feature_extractor(config: PretrainedConfig) -> Any:  # noqa: ANN401, as above
    """Return the feature extractor of a model that has no file of its own.

    Base models were trained on waveforms as they are, large ones on normalised ones; the norm of
    the front end tells them apart.

    Args:
        config: The model's configuration.
    """
    if config.model_type == "whisper":
        seconds = config.max_source_positions * 2 * HOP // SAMPLE_RATE
        make: Any = WhisperFeatureExtractor  # untyped
        return make(feature_size=config.num_mel_bins, chunk_length=max(1, seconds))
    large = getattr(config, "feat_extract_norm", "layer") != "group"
    return wav2vec2_feature_extractor(normalises=large, masks=large)


def wav2vec2_feature_extractor(*, normalises: bool, masks: bool) -> Any:  # noqa: ANN401, as above
    """Return the feature extractor of a waveform model at 16 kHz.

    Args:
        normalises: Whether it brings waveforms to zero mean and unit variance.
        masks: Whether it gives an attention mask. Published models with a group norm were
            pretrained without one.
    """
    make: Any = Wav2Vec2FeatureExtractor  # untyped
    return make(
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=normalises,
        return_attention_mask=masks,
    )


def _check(name: str, extractor: Any, config: PretrainedConfig) -> None:  # noqa: ANN401, as above
    """Refuse a feature extractor that is not computed here.

    Raises:
        TeacherError: With its setting, what it is and what it has to be.
    """
    is_whisper = config.model_type == "whisper"
    kind = WhisperFeatureExtractor if is_whisper else Wav2Vec2FeatureExtractor
    if not isinstance(extractor, kind):
        raise TeacherError(
            f"the feature extractor of {name} is a {type(extractor).__name__}, but a model of type "
            f"{config.model_type} is given audio as a {kind.__name__} prepares it: give a model "
            "with that one"
        )
    needed = {"sampling_rate": SAMPLE_RATE}
    if is_whisper:
        needed |= {"feature_size": config.num_mel_bins, "n_fft": WINDOW, "hop_length": HOP}
    else:
        needed |= {"feature_size": 1}
    for setting, value in needed.items():
        found = getattr(extractor, setting, None)
        if found != value:
            raise TeacherError(
                f"{setting} of the feature extractor of {name} is {found}, but it has to be "
                f"{value}: {_FIXES.get(setting, 'give a model that was trained with that')}"
            )


_FIXES: Final = {
    "sampling_rate": "give a model of speech at 16 kHz",
    "feature_size": "give the model the preprocessor_config.json that it was trained with",
}


def _described(extractor: Any) -> str:  # noqa: ANN401, as above
    if isinstance(extractor, WhisperFeatureExtractor):
        return f"log-mel features of {extractor.feature_size} bins at {SAMPLE_RATE} Hz"
    normalised = "normalised waveforms" if extractor.do_normalize else "waveforms as they are"
    return f"{normalised} at {SAMPLE_RATE} Hz"


@lru_cache
def _report_assumption(name: str, assumption: str) -> None:
    """Log what is assumed of a model, once a process."""
    log.warning(
        "%s has no %s: assuming %s, as models of its architecture were trained; add the file if "
        "that is wrong",
        name,
        " or ".join(PREPROCESSOR_FILES),
        assumption,
    )

"""Small models of every teacher family, random and on disk, and the speech they are tested on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)

from interstack.models.encoder import tie_last_hidden_state

SPEECH: Final = Path(__file__).parents[2] / "assets/speech/LibriSpeech/test-clean"
NUM_LAYERS: Final = 3
WIDTH: Final = 32
TRANSFORMER: Final[dict[str, Any]] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
LARGE: Final[dict[str, Any]] = {
    **TRANSFORMER,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
DATA2VEC: Final[dict[str, Any]] = {
    **TRANSFORMER,
    "num_conv_pos_embeddings": 3,
    "conv_pos_kernel_size": 9,
}


def whisper_config(**changes: Any) -> WhisperConfig:  # noqa: ANN401 - transformers' fields
    """A small Whisper with positions for one second."""
    fields: dict[str, Any] = {
        "d_model": WIDTH,
        "encoder_layers": NUM_LAYERS,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64,
        "vocab_size": 8,
        "max_source_positions": 50,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    return WhisperConfig(**fields | changes)


WAVEFORM_MODELS: Final[dict[str, Callable[[], PreTrainedModel]]] = {
    "hubert-base": lambda: HubertModel(HubertConfig(**TRANSFORMER)),
    "hubert-large": lambda: HubertModel(HubertConfig(**LARGE)),
    "hubert-batch-norm": lambda: HubertModel(HubertConfig(**TRANSFORMER, conv_pos_batch_norm=True)),
    "wavlm-base": lambda: WavLMModel(WavLMConfig(**TRANSFORMER)),
    "wavlm-large": lambda: WavLMModel(WavLMConfig(**LARGE)),
    "wav2vec2-base": lambda: Wav2Vec2Model(Wav2Vec2Config(**TRANSFORMER)),
    "wav2vec2-large": lambda: Wav2Vec2Model(Wav2Vec2Config(**LARGE)),
    "data2vec-audio": lambda: Data2VecAudioModel(Data2VecAudioConfig(**DATA2VEC)),
}
"""Every kind of front end, positional convolution and encoder that waveform teachers have."""
MODELS: Final[dict[str, Callable[[], PreTrainedModel]]] = {
    **WAVEFORM_MODELS,
    "whisper": lambda: WhisperModel(whisper_config()),
}
"""Every kind of teacher."""


def build(family: str) -> Any:  # noqa: ANN401 - the families share attributes, but no type
    """A model in eval mode whose every weight is random, also those that start at 0 or 1."""
    torch.manual_seed(0)
    model: Any = MODELS[family]()
    tie_last_hidden_state(model.config)  # so that transformers' own last one is the finished one
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None:
                module.running_mean.normal_()
    return model.eval()


def save(family: str, parent: Path) -> Path:
    """Write the model of a family below a directory, and tell where."""
    build(family).save_pretrained(parent / family)
    return parent / family


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Change a saved model's tensors in place."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **fields: Any) -> None:  # noqa: ANN401 - JSON
    """Set fields of a JSON file, made if absent."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


def read_speech(*seconds: float) -> list[Tensor]:
    """So many seconds of real speech from the start of one recording for each length given."""
    recordings: list[Tensor] = []
    for path in sorted(SPEECH.glob("*/*/*.flac")):
        wanted = int(seconds[len(recordings)] * 16_000)
        samples, _ = soundfile.read(path, dtype="float32")
        if len(samples) >= wanted:
            recordings.append(torch.from_numpy(samples[:wanted]))
        if len(recordings) == len(seconds):
            return recordings
    raise AssertionError(f"the embedded test split has no speech of {seconds} seconds")


def pad(utterances: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Waveforms padded with zeros, and their valid samples."""
    num_samples = torch.tensor([len(utterance) for utterance in utterances])
    return pad_sequence(utterances, batch_first=True), num_samples

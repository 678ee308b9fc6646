"""How far Whisper's hidden states on speech alone are from those on clips padded to 30 s.

``python -m benchmarks.whisper_padding --teacher DIR --speech DIR`` prints a row a clip length.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from interstack.constants import SAMPLE_RATE
from interstack.data.audio import read_samples
from interstack.data.audio_files import list_audio
from interstack.models.teacher import Teacher

SECONDS: Final = (0.6, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0, 29.5)
NUM_CLIPS: Final = 12


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", required=True, help="directory of a Whisper encoder")
    parser.add_argument("--speech", type=Path, required=True, help="folder of clips at 16 kHz")
    options = parser.parse_args()
    extractor: Any = WhisperFeatureExtractor.from_pretrained(options.teacher)
    encoder = WhisperEncoder.from_pretrained(options.teacher, dtype=torch.float32).eval()
    teacher = Teacher(options.teacher, range(encoder.config.encoder_layers + 1))
    speech = [_read(Path(file)) for file in list_audio(options.speech).files]
    print("| clip | hidden states | hidden states, each frame layer-normed |\n| --- | --- | --- |")
    for seconds in SECONDS:
        gaps = [
            _gaps(clip, teacher, encoder, extractor)
            for clip in _cut(speech, int(seconds * SAMPLE_RATE))
        ]
        plain, normed = torch.tensor(gaps).mean(0).tolist()
        print(f"| {seconds:g} s | {_row(plain)} | {_row(normed)} |", flush=True)


def _read(file: Path) -> Tensor:
    samples, _ = read_samples(str(file), str(file))
    return torch.from_numpy(samples[:, 0].copy())


def _cut(speech: list[Tensor], num_samples: int) -> list[Tensor]:
    """Return clips of so many samples: the beginnings of long ones, or pieces of all in a row."""
    long = [clip[:num_samples] for clip in speech if len(clip) >= num_samples]
    if len(long) < NUM_CLIPS:
        joined = torch.cat(speech)
        long = [joined[start : start + num_samples] for start in range(0, len(joined), num_samples)]
    return long[:NUM_CLIPS]


@torch.inference_mode()
def _gaps(
    clip: Tensor,
    teacher: Teacher,
    encoder: Any,  # noqa: ANN401, transformers' object
    extractor: Any,  # noqa: ANN401, as above
) -> tuple[list[float], list[float]]:
    """Return each hidden state's relative difference, as it is and with frames layer-normed."""
    own = teacher(clip[None], torch.tensor([len(clip)]))
    mel = extractor(clip.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    padded = encoder(mel, output_hidden_states=True).hidden_states
    frames = int(own.num_frames[0])
    pairs = [
        (mine[0, :frames], theirs[0, :frames])
        for mine, theirs in zip(own.hidden_states, padded, strict=True)
    ]
    normed = [
        tuple(layer_norm(states, states.shape[-1:]) for states in (mine, theirs))
        for mine, theirs in pairs
    ]
    return [_gap(*pair) for pair in pairs], [_gap(*pair) for pair in normed]


def _gap(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).norm() / theirs.norm())


def _row(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()

"""How much padding disturbs an export inside transformers, measured on speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoModel

from interstack.constants import SAMPLE_RATE
from interstack.export.directory import without_progress_bar


def padding_gap(directory: Path, waveforms: Sequence[Tensor]) -> float:
    """Return the largest relative error that padding brings into an utterance's hidden states.

    transformers' own forward lets padding into the statistics of a group norm (HuBERT Base's);
    layer norms have none over time. The error of an utterance is the largest over hidden states of
    ‖padded − alone‖ / ‖alone‖, over its valid frames; padded to the longest, with an attention
    mask.

    Args:
        directory: An export.
        waveforms: Two or more utterances, (num_samples,), of different lengths.
    """
    with without_progress_bar():
        model: Any = AutoModel.from_pretrained(directory, dtype=torch.float32)
    prepare: Any = AutoFeatureExtractor.from_pretrained(directory)
    model.eval()

    def hear(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        inputs = prepare(
            [clip.numpy() for clip in clips],
            sampling_rate=SAMPLE_RATE,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        lengths = inputs["attention_mask"].sum(-1)
        output = model(**inputs, output_hidden_states=True)
        return torch.stack(output.hidden_states), model._get_feat_extract_output_lengths(lengths)

    largest = 0.0
    with torch.inference_mode():
        padded, frames = hear(waveforms)
        for row, waveform in enumerate(waveforms):
            alone = hear([waveform])[0][:, 0]
            difference = padded[:, row, : frames[row]] - alone
            errors = difference.norm(dim=(1, 2)) / alone.norm(dim=(1, 2))
            largest = max(largest, float(errors.max()))
    return largest

"""The model card of an export: what its users have to know of the student."""

from __future__ import annotations

import json
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Final

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment
from transformers import HubertConfig

from interstack.constants import SAMPLE_RATE
from interstack.export.provenance import Provenance
from interstack.models.front_end import frame_hop

CARD_FILE: Final = "README.md"
_S3PRL_HOP: Final = 320
"""Samples from one frame to the next that s3prl's `hf_hubert` assumes of every model."""


def write_card(
    directory: Path,
    provenance: Provenance,
    config: HubertConfig,
    num_parameters: int,
    padding_gap: float | None = None,
) -> None:
    """Write the model card into an export's directory.

    Args:
        directory: The export.
        provenance: Where the student comes from.
        config: Configuration of the exported model.
        num_parameters: Parameters of the exported model.
        padding_gap: Result of `huggingface.padding_gap`; None if it was not measured.
    """
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        (files(__package__) / "card.md").read_text(encoding="utf-8")
    )
    settings = {} if provenance.averaging is None else provenance.averaging["settings"]
    hop = frame_hop(config)
    text = template.render(
        origin=provenance,
        config=config,
        depth=config.num_hidden_layers,
        num_parameters=num_parameters,
        padding_gap=padding_gap,
        grown=len({layer.block for layer in provenance.layers}) < len(provenance.layers),
        average_settings={key: value for key, value in settings.items() if value is not None},
        hop=hop,
        frame_ms=1000 * hop / SAMPLE_RATE,
        s3prl_hop=_S3PRL_HOP,
        json=partial(json.dumps, ensure_ascii=False),
        millions=lambda count: f"{count / 1e6:.2f} M",
        loss=lambda value: "–" if value is None else f"{value:.4f}",
    )
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["hubert", "speech", "distillation", "interstack"],
        base_model=None if Path(provenance.teacher).exists() else provenance.teacher,
    )
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text.rstrip()}\n")
    card.save(directory / CARD_FILE)

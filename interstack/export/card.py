"""The card of an export: what a stranger has to know before using it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from transformers import HubertConfig

from interstack.constants import SAMPLE_RATE
from interstack.export.provenance import Provenance
from interstack.models.front_end import frame_hop
from interstack.tracking.stage_records import StageRecord

CARD_FILE: Final = "README.md"
_S3PRL_HOP: Final = 320
"""Samples from one frame to the next that s3prl's `hf_hubert` states of every model."""
_METHOD: Final = "[interleaved stacking](https://arxiv.org/abs/2606.11766)"


def write_card(
    directory: Path,
    provenance: Provenance,
    config: HubertConfig,
    num_parameters: int,
    padding_gap: float | None = None,
) -> None:
    """Write the card into an export's directory.

    Args:
        directory: The export.
        provenance: Where the student comes from.
        config: Of the exported model.
        num_parameters: The same.
        padding_gap: What `padding.padding_gap` has measured; None: it was not.
    """
    lines = [*_front_matter(provenance), *_heading(provenance, config, num_parameters)]
    lines += [*_use(config), *_padding(config, padding_gap)]
    lines += [*_lineage(provenance), *_training(provenance)]
    (directory / CARD_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _front_matter(provenance: Provenance) -> Iterator[str]:
    fields: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["hubert", "speech", "distillation", "interstack"],
    }
    if not Path(provenance.teacher).exists():
        fields["base_model"] = provenance.teacher
    yield from ("---", yaml.safe_dump(fields, sort_keys=False).strip(), "---", "")


def _heading(provenance: Provenance, config: HubertConfig, num_parameters: int) -> Iterator[str]:
    yield f"# HuBERT of {config.num_hidden_layers} × {config.hidden_size}, distilled"
    yield ""
    grown = len({layer.block for layer in provenance.layers}) < len(provenance.layers)
    how = f"by {_METHOD}" if provenance.operator == "interleave" else "with interstack"
    yield (
        f"A student of {num_parameters / 1e6:.2f} M parameters, distilled from "
        f"`{provenance.teacher}` {how}{'' if grown else ' (not grown yet)'}; its teacher's and "
        "its corpus' terms of use are its own as well."
    )
    yield ""
    if provenance.early_end is not None:
        yield from (f"**Not fully trained**: its run ended early, {provenance.early_end}.", "")
    elif len(provenance.layers) < provenance.final_depth:
        yield (
            f"**Not fully grown**: it is of stage {provenance.stage} of "
            f"{len(provenance.planned_depths)}, at depth {len(provenance.layers)} of "
            f"{provenance.final_depth}."
        )
        yield ""


def _use(config: HubertConfig) -> Iterator[str]:
    hop, depth = frame_hop(config), config.num_hidden_layers
    yield from (
        "## Use",
        "",
        "```python",
        "from transformers import AutoFeatureExtractor, AutoModel",
        "",
        "model = AutoModel.from_pretrained(DIRECTORY).eval()",
        "prepare = AutoFeatureExtractor.from_pretrained(DIRECTORY)",
        'inputs = prepare(waveform, sampling_rate=16_000, return_tensors="pt")',
        "hidden_states = model(**inputs, output_hidden_states=True).hidden_states",
        "```",
        "",
        f"Waveforms at 16 kHz in [-1, 1]; a frame each {1000 * hop / SAMPLE_RATE:g} ms; "
        f"{depth + 1} hidden states, of which 0 is the encoder's input and {depth} its output"
        f"{' after the final layer norm' if config.do_stable_layer_norm else ''}. {_s3prl(hop)} "
        "For an utterance alone the hidden states are those of the student in training, up to "
        "rounding.",
        "",
    )
    if config.do_stable_layer_norm:
        yield from (
            f"The encoder is pre-LN. Hidden state {depth}, which the student was trained on, is "
            "transformers' `last_hidden_state`, and `hidden_states[-1]` too where "
            "`tie_last_hidden_states` of `config.json` is read, as by transformers 5.23. A version "
            "that does not read it may return `hidden_states[-1]` without the norm: take "
            "`last_hidden_state` there.",
            "",
        )


def _s3prl(hop: int) -> str:
    """Return whether s3prl's expert, which knows frames of 320 samples alone, takes the export."""
    if hop == _S3PRL_HOP:
        return "s3prl takes the directory as the checkpoint of `hf_hubert_custom`."
    return (
        f"s3prl's `hf_hubert_custom` does not take the directory: it expects a frame each "
        f"{_S3PRL_HOP} samples, and here it is {hop}."
    )


def _padding(config: HubertConfig, gap: float | None) -> Iterator[str]:
    yield from ("## Padding", "")
    measured = (
        ""
        if gap is None
        else f" On clips of its corpus, padded to the longest, they are off by {gap:.2g} of their "
        "norm at most."
    )
    if config.feat_extract_norm == "layer":
        yield (
            "The front end has layer norms: in a batch padded with an attention mask an "
            f"utterance's hidden states are those that it has alone.{measured}"
        )
    else:
        yield (
            "The front end has a group norm over time, into which transformers lets padding: in a "
            "batch, even with an attention mask, an utterance's hidden states are not those that "
            f"it has alone.{measured} Feed utterances one at a time, or of like lengths; a student "
            "with a front end of its own and `model.student.feat_extract_norm: layer` has no such "
            "gap."
        )
    yield ""


def _lineage(provenance: Provenance) -> Iterator[str]:
    yield from (
        "## Layers",
        "",
        "A block is what a layer of the first stage has become; its first layer is that layer.",
        "",
        "| layer | block | place in it | | tied to the teacher's |",
        "| --: | --: | --: | --- | --: |",
    )
    for number, layer in enumerate(provenance.layers, start=1):
        tied = ", ".join(f"hidden state {tap}" for tap in layer.teacher_layers)
        yield f"| {number} | {layer.block} | {layer.place} | {layer.kind} | {tied} |"
    yield ""


def _training(provenance: Provenance) -> Iterator[str]:
    yield from ("## Training", "")
    taps = ", ".join(str(tap) for tap in provenance.teacher_taps)
    source = provenance.front_end_source
    origin = "" if source is None else f", of `{source}`"
    yield (
        f"- Teacher: `{provenance.teacher}`, hidden states {taps}; front end: "
        f"`{provenance.front_end}`{origin}."
    )
    if provenance.data is not None:
        source = str(provenance.data.get("class_path", "")).rpartition(".")[2]
        settings = json.dumps(provenance.data.get("init_args", {}), ensure_ascii=False)
        yield f"- Corpus: `{source}` with `{settings}`."
    if provenance.operator is not None:
        yield f"- Growth operator: `{provenance.operator}`; {provenance.step:,} optimizer steps."
    if provenance.averaging is not None:
        yield f"- Weights: {_average(provenance.averaging)}."
    if provenance.command is not None:
        yield f"- Command: `{provenance.command}`"
    if provenance.versions:
        found = ", ".join(f"{name} {number}" for name, number in provenance.versions.items())
        yield f"- Versions: {found}."
    yield ""
    if provenance.stages:
        yield "| stage | depth | parameters | steps | hours | validation loss | at its end |"
        yield "| --: | --: | --: | --: | --: | --: | --: |"
        yield from (_stage(stage) for stage in provenance.stages)


def _average(averaging: Mapping[str, Any]) -> str:
    given = {name: value for name, value in averaging["settings"].items() if value is not None}
    settings = f" with `{json.dumps(given)}`" if given else ""
    return (
        f"not those of the last step, but their average over the training by "
        f"`{averaging['callback']}`{settings}, updated {averaging['updates']:,} times; validation "
        "losses are the average's as well"
    )


def _stage(stage: StageRecord) -> str:
    losses = (stage.validation_loss_before, stage.validation_loss_after)
    before, after = ("–" if loss is None else f"{loss:.4f}" for loss in losses)
    return (
        f"| {stage.stage} | {stage.depth} | {stage.num_parameters / 1e6:.2f} M | {stage.steps:,} "
        f"| {stage.audio_seconds / 3600:.2f} | {before} | {after} |"
    )

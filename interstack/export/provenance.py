"""Where a student comes from: teacher, corpus, growth, losses, command; from its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml

from interstack.checkpointing.inspect import CONFIG_KEY, ORIGIN_KEY
from interstack.distillation.averaging import AVERAGING_KEY
from interstack.models.student import CHECKPOINT_KEY
from interstack.tracking.lineage import block_positions
from interstack.tracking.stage_records import StageRecord
from interstack.tracking.stages import StageRecorder

PROVENANCE_FILE: Final = "interstack.json"
"""File of an export with its provenance, for programs; transformers does not read it."""

EARLY_END_KEY: Final = "interstack_early_end"
"""Key in a checkpoint of where its run ended, in words, if that was before its schedule did."""

LayerKind = Literal["original", "clone"]


@dataclass(frozen=True)
class Layer:
    """Where one layer of the student comes from.

    Attributes:
        block: The layer of the first stage that it descends from, counted from 1.
        place: Its position in the block, counted from 1.
        kind: ``original``: it is that layer, trained from the first step on. ``clone``: a growth
            step inserted it (with the operator ``random``, as a fresh layer).
        teacher_layers: The teacher's hidden states that it is tied to; none for most, several
            where taps share the top layer.
    """

    block: int
    place: int
    kind: LayerKind
    teacher_layers: tuple[int, ...]


@dataclass(frozen=True)
class Provenance:
    """Where a student comes from.

    Attributes:
        teacher: Hub id or directory of the teacher, as given to the run.
        teacher_taps: The teacher's hidden states that the student was trained on.
        front_end: ``own``, ``copy`` or ``shared``; see `StudentConfig`.
        front_end_source: Hub id or directory of the model whose front end was copied or shared, as
            given to the run; None: the teacher.
        data: The data source and its settings; None if the command line did not start the run.
        operator: Growth operator; None as before.
        step: Optimizer steps that it was trained for.
        averaging: The callback whose average of the weights the student has, its settings if the
            command line started the run, and the average's updates; None: the weights are those of
            the last step.
        layers: One entry a layer, bottom first.
        stages: Costs and losses of each stage.
        command: The command line of the run; None as before.
        versions: Versions of interstack (with its commit, if any) and its dependencies.
        planned_depths: Layers of every stage of the run; none as before.
        early_end: Where the run ended, in words, if that was before its schedule did.
    """

    teacher: str
    teacher_taps: tuple[int, ...]
    front_end: str
    data: Mapping[str, Any] | None
    operator: str | None
    step: int
    averaging: Mapping[str, Any] | None
    layers: tuple[Layer, ...]
    stages: tuple[StageRecord, ...]
    command: str | None
    versions: Mapping[str, str]
    planned_depths: tuple[int, ...] = ()
    early_end: str | None = None
    front_end_source: str | None = None

    @property
    def final_depth(self) -> int:
        """Layers that the run was to end with."""
        return max([len(self.layers), *self.planned_depths])

    @property
    def stage(self) -> int:
        """The stage that the student is of, counted from 1."""
        return max(1, sum(depth <= len(self.layers) for depth in self.planned_depths))

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Self:
        """Return the provenance of a checkpoint's content."""
        structure = checkpoint[CHECKPOINT_KEY]
        settings = checkpoint["hyper_parameters"]
        config = yaml.safe_load(checkpoint.get(CONFIG_KEY) or "{}")
        origin = checkpoint.get(ORIGIN_KEY, {})
        recorder = checkpoint.get("callbacks", {}).get(StageRecorder.__qualname__, {})
        return cls(
            teacher=settings["teacher"]["source"],
            teacher_taps=tuple(structure["teacher_taps"]),
            front_end=settings["student"]["front_end"],
            data=config.get("data", {}).get("source"),
            operator=config.get("growth", {}).get("operator"),
            step=checkpoint["global_step"],
            averaging=_averaging(checkpoint.get(AVERAGING_KEY), config),
            layers=_layers(
                structure["lineage"], structure["tap_layers"], structure["teacher_taps"]
            ),
            stages=tuple(StageRecord(**stage) for stage in recorder.get("stages", ())),
            command=origin.get("command"),
            versions=origin.get("versions", {}),
            planned_depths=tuple(config.get("growth", {}).get("depths", ())),
            early_end=checkpoint.get(EARLY_END_KEY, recorder.get("early_end")),
            front_end_source=settings["student"].get("front_end_source"),
        )

    def write(self, directory: Path) -> None:
        """Write ``interstack.json`` into an export's directory."""
        text = json.dumps(asdict(self), indent=2)
        (directory / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")


def teacher_of(directory: Path) -> str | None:
    """Return the teacher that an export's provenance names; None for any other directory."""
    try:
        fields = json.loads((directory / PROVENANCE_FILE).read_text(encoding="utf-8"))
        return str(fields["teacher"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _averaging(
    record: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a checkpoint's record of its average with the callback's settings."""
    if record is None:
        return None
    given = config.get("trainer", {}).get("callbacks") or []
    settings: dict[str, Any] = {}
    for callback in given if isinstance(given, list) else [given]:
        if callback["class_path"].rpartition(".")[2] == record["callback"]:
            settings = callback.get("init_args", {})
    return {**record, "settings": settings}


def _layers(
    lineage: Sequence[int], tap_layers: Sequence[int], teacher_taps: Sequence[int]
) -> tuple[Layer, ...]:
    """Return every layer's descent; the first layer of a block is the original."""
    layer_taps = [tap for tap in teacher_taps if tap > 0]
    layers = []
    for layer, (block, place) in enumerate(block_positions(lineage)):
        kind: LayerKind = "original" if place == 1 else "clone"
        tied = [tap for at, tap in zip(tap_layers, layer_taps, strict=True) if at == layer]
        layers.append(Layer(block, place, kind, tuple(tied)))
    return tuple(layers)

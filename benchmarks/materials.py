"""What steps are made of: models with random weights, noise for audio, and caches of targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from transformers import HubertConfig, HubertModel

from benchmarks.variants import Setting
from interstack.constants import SAMPLE_RATE
from interstack.data.batch import Batch
from interstack.data.dataset import checksum
from interstack.distillation.module import Distillation
from interstack.models.config import StudentConfig, TeacherConfig, TeacherDtype
from interstack.models.factory import load_teacher
from interstack.models.teacher import Teacher
from interstack.target_cache.format import CacheDtype, Entry, write_shard
from interstack.target_cache.manifest import CacheRecord
from interstack.target_cache.reader import CachedTeacher, SplitIndex, TargetCache, write_front_end
from interstack.target_cache.writer import compute_targets

TAPS: Final = (4, 8, 12)
_SPLIT: Final = "train"
_SHARD: Final = "targets.safetensors"
_TINY_FRONT_END: Final = (16,) * 7


@dataclass(frozen=True)
class Scale:
    """How much a step computes.

    Attributes:
        quick: Tiny models of the same depth, instead of HuBERT Base and the paper's student.
        seconds: Of each utterance.
        utterances: Of a batch, all of one length, so that there is no padding.
    """

    quick: bool
    seconds: float
    utterances: int

    def teacher(self) -> HubertConfig:
        """Return the teacher's shape."""
        if not self.quick:
            return HubertConfig()
        return HubertConfig(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=4,
            conv_dim=_TINY_FRONT_END,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )

    def student(self, setting: Setting) -> StudentConfig:
        """Return the student's settings."""
        if not self.quick:
            return StudentConfig(front_end=setting.front_end, dropout=setting.dropout)
        tiny = StudentConfig(
            front_end=setting.front_end,
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=4,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            dropout=setting.dropout,
        )
        own = setting.front_end == "own"
        return replace(tiny, conv_dim=_TINY_FRONT_END) if own else tiny

    def audio(self) -> Batch:
        """Return the batch, always the same."""
        num_samples = round(self.seconds * SAMPLE_RATE)
        generator = torch.Generator().manual_seed(0)
        waveforms = 0.1 * torch.randn(self.utterances, num_samples, generator=generator)
        ids = tuple(f"noise-{number}" for number in range(self.utterances))
        return Batch(waveforms, torch.full((self.utterances,), num_samples), ids)


class Materials:
    """Gives the parts of steps.

    Args:
        directory: For teacher and caches; `make` fills it.
        scale: How much a step computes.
        device: Where it does.
    """

    def __init__(self, directory: Path, scale: Scale, device: torch.device) -> None:
        self.directory = directory
        self.scale = scale
        self.device = device
        self._audio = scale.audio()
        self._teachers: dict[tuple[TeacherDtype, bool], Teacher] = {}
        self._cached: dict[tuple[CacheDtype, bool], CachedTeacher] = {}

    def make(self) -> None:
        """Write a teacher of random weights, and caches of what it says of the audio."""
        torch.manual_seed(0)
        HubertModel(self.scale.teacher()).save_pretrained(self.directory / "teacher")
        for dtype in ("float16", "int8"):
            self._make_cache(dtype)

    def _make_cache(self, dtype: CacheDtype) -> None:
        directory = self.directory / dtype
        split = directory / _SPLIT
        split.mkdir(parents=True)
        teacher = self._teacher("float32", compiled=False)
        config = self._teacher_config("float32")
        record = CacheRecord.of(config, teacher, dtype, with_features=True)
        record.write(directory)
        write_front_end(teacher, directory)
        length = self._audio.waveforms.shape[1]
        entries = [
            Entry(id_, length, 0, length, checksum(waveform))
            for id_, waveform in zip(self._audio.ids, self._audio.waveforms, strict=True)
        ]
        told = compute_targets(teacher, self._audio, record, self.device)
        write_shard(split / _SHARD, list(zip(entries, told, strict=True)))
        SplitIndex((_SHARD, row, entry) for row, entry in enumerate(entries)).write(split)

    def module(self, setting: Setting, depth: int) -> Distillation:
        """Return a fresh module, ready to be trained; what it learns from may be changed later."""
        module = Distillation(
            self._teacher_config(setting.teacher_dtype),
            self.scale.student(setting),
            initial_depth=depth,
        )
        module._teacher = [self.teller(setting)]  # before setup, which would load it once more
        module.setup("fit")
        if setting.compiled:
            module.student.compile_layers()
        return module.to(self.device).train()

    def teller(self, setting: Setting) -> Teacher | CachedTeacher:
        """Return what says the targets, the same one each time."""
        if setting.targets == "live":
            return self._teacher(setting.teacher_dtype, compiled=setting.compiled)
        key = (setting.targets, setting.front_end == "shared")
        if key not in self._cached:
            cache = TargetCache(self.directory / setting.targets)
            cache.with_features = key[1]
            self._cached[key] = CachedTeacher(cache)
        return self._cached[key]

    def batch(self, setting: Setting) -> Batch:
        """Return the batch as workers hand it over; cached targets are read anew each time."""
        teller = self.teller(setting)
        if isinstance(teller, Teacher):
            return self._audio
        split = teller.cache.split(_SPLIT)
        told = split.collate(self._audio.ids)
        batch = self._audio._replace(targets=told)
        if split.replaces_audio:
            batch = batch._replace(waveforms=torch.empty(self.scale.utterances, 0))
        return batch

    def _teacher(self, dtype: TeacherDtype, *, compiled: bool) -> Teacher:
        key = (dtype, compiled)
        if key not in self._teachers:
            teacher = load_teacher(self._teacher_config(dtype), len(TAPS)).to(self.device)
            if compiled:
                teacher.compile_layers()
            self._teachers[key] = teacher
        return self._teachers[key]

    def _teacher_config(self, dtype: TeacherDtype) -> TeacherConfig:
        source = str(self.directory / "teacher")
        return TeacherConfig(source, TAPS, dtype=dtype)

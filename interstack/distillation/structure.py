"""The student's structure in a checkpoint: enough to rebuild it at any depth."""

from __future__ import annotations

import json
from typing import Any

from transformers import HubertConfig

from interstack.models.student import Student

CHECKPOINT_KEY = "interstack_student"


def student_structure(student: Student) -> dict[str, Any]:
    """Describe a student in primitives, as ``torch.load(weights_only=True)`` wants them."""
    return {
        "hubert_config": student.config.to_json_string(use_diff=False),
        "teacher_taps": list(student.teacher_taps),
        "teacher_width": student.teacher_width,
        "tap_placement": student.tap_placement,
        "tap_layers": list(student.tap_layers),
        "lineage": list(student.lineage),
        "normalises_waveform": student.normalises_waveform,
        "freeze_front_end": student.freeze_front_end,
    }


def rebuild_student(structure: dict[str, Any]) -> Student:
    """Build a student of this structure; its weights are random until they are loaded."""
    student = Student(
        HubertConfig(**json.loads(structure["hubert_config"])),
        structure["teacher_taps"],
        structure["teacher_width"],
        tap_placement=structure["tap_placement"],
        normalises_waveform=structure["normalises_waveform"],
        freeze_front_end=structure["freeze_front_end"],
    )
    student.lineage = tuple(structure["lineage"])
    student.tap_layers = tuple(structure["tap_layers"])
    return student

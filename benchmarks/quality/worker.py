"""One run of the quality study: train, validate against the live teacher, probe for phones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

FRONT_END_OF_THE_TEACHER = "[48,64,96,128,160,192,256]"
"""Channels of the embedded teacher's: an own front end of the same shape, but fresh."""


class RunPlan(NamedTuple):
    """One run.

    Attributes:
        arm: What is tried.
        equal: What it shares with the other arms: ``steps`` or ``wall-clock``.
        seed: The run's seed.
        steps: Optimizer steps.
        front_end: The student's.
        cache: Number format of the cached targets; None: the teacher is live.
    """

    arm: str
    equal: str
    seed: int
    steps: int
    front_end: str
    cache: str | None


class RunResult(NamedTuple):
    """What came of it.

    Attributes:
        plan: The run.
        training_seconds: Wall-clock of its training, validations left out.
        validation_loss: Over the whole validation split, against the live teacher.
        phone_accuracy: Of a linear probe with seed 0.
    """

    plan: RunPlan
    training_seconds: float
    validation_loss: float
    phone_accuracy: float

    def to_primitives(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        return self._asdict() | {"plan": self.plan._asdict()}

    @classmethod
    def from_primitives(cls, fields: dict[str, Any]) -> RunResult:
        """Read what `to_primitives` gave."""
        return cls(**(fields | {"plan": RunPlan(**fields["plan"])}))


def run(plan: RunPlan, corpus: str, caches: str, directory: str) -> RunResult:
    """Train and judge one student."""
    from interstack.commands.lightning import run_lightning
    from interstack.evaluation.phone_probe import run_phone_probe

    words = ["--config=configs/interleaved.yaml", f"--seed_everything={plan.seed}"]
    words += [f"--data.seed={plan.seed}", f"--data.source.root={corpus}", "--data.num_workers=0"]
    words += [f"--trainer.default_root_dir={directory}/run", f"--trainer.max_steps={plan.steps}"]
    words += ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    words += [f"--model.student.front_end={plan.front_end}"]
    if plan.front_end == "own":
        words += [f"--model.student.conv_dim={FRONT_END_OF_THE_TEACHER}"]
    cached = ["--data.crop=fixed", f"--data.target_cache={caches}/{plan.cache}"]
    few = ["--trainer.limit_val_batches=2"]  # those at growths are not what is asked here
    run_lightning(["fit", *words, *few, *(cached if plan.cache else [])])
    stages = json.loads((Path(directory) / "run" / "stages.json").read_text())["stages"]
    last = f"--ckpt_path={directory}/run/checkpoints/last.ckpt"
    judged = run_lightning(["validate", *words, last])
    probed = run_phone_probe(corpus, [f"{directory}/run/student"], seeds=1)
    return RunResult(
        plan,
        sum(stage["training_seconds"] for stage in stages),
        float(judged.trainer.callback_metrics["val/loss"]),
        probed.upstreams[0].score.test[0],
    )


def main() -> None:
    """Run the order that comes as JSON, and print the result as the last line."""
    order = json.loads(sys.argv[1])
    places = [order.pop(name) for name in ("corpus", "caches", "directory")]
    print(json.dumps(run(RunPlan(**order), *places).to_primitives()))


if __name__ == "__main__":
    main()

"""The commands of the command line, one module each."""

from typing import Final

LIGHTNING: Final = "interstack.commands.lightning.run_lightning"
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "new": (
        "interstack.commands.new.run_new",
        "make a small project of one's own, which trains in a minute",
    ),
    "fit": (LIGHTNING, "distil a teacher into a growing student"),
    "validate": (LIGHTNING, "the validation loss of a checkpoint"),
    "test": (LIGHTNING, "the test loss of a checkpoint"),
    "predict": (LIGHTNING, "write a checkpoint's hidden states of the test split"),
    "plan": (
        "interstack.commands.plan.run_plan",
        "what a run will cost, before it starts: stages, step split, wall-clock",
    ),
    "cache": (
        "interstack.commands.cache.run_cache",
        "compute the teacher's targets of a corpus once, for runs without a teacher",
    ),
    "sweep": (
        "interstack.commands.sweep.run_sweep",
        "compare recipes: arms, seeds and values as runs of fit, and their table",
    ),
    "report": (
        "interstack.commands.report.run_report",
        "runs as one HTML file: losses, stages, lineage, step split, similarity",
    ),
    "workspace": (
        "interstack.commands.workspace.run_workspace",
        "panels for Weights & Biases, laid out for a growing run",
    ),
    "export": (
        "interstack.commands.export.run_export",
        "a checkpoint's student as a Hugging Face directory, and as ONNX",
    ),
    "inspect": (
        "interstack.commands.inspect.run_inspect",
        "what models cost: parameters, GMACs, real-time factor on this machine",
    ),
    "features": (
        "interstack.commands.features.run_features",
        "an encoder's hidden states for a folder of audio, as files",
    ),
    "pack": (
        "interstack.commands.pack.run_pack",
        "pack a folder of speech into tar shards that can be streamed",
    ),
    "probe": (
        "interstack.commands.probe.run_probe",
        "what models know of phones: a linear probe",
    ),
    "superb": (
        "interstack.commands.superb.run_superb",
        "SUPERB's tasks by s3prl's own recipes, beside the published rows",
    ),
    "completion": (
        "interstack.commands.completion.run_completion",
        "print what lets a shell complete commands and options",
    ),
}
"""Of each command the function that runs it, imported when it is called, and its summary."""

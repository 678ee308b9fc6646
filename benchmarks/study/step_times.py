"""Times a training step alone at each depth of a configuration; writes a record.

    python -m benchmarks.study.step_times --config X [--overlay Y] [--cache float16] [--threads N]
    python -m benchmarks.study.step_times --study FILE

Whatever else `fit` understands may follow. The steps are those of the configuration's own first
batches, in turns over all depths, on a machine that should do nothing else. With ``--cache`` the
teacher computes these batches' targets once, and they are read from a cache of them alone.
`benchmarks.study.modelled_time` makes a run's time of them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple, get_args

import torch
import yaml

from benchmarks.options import add_output
from benchmarks.records import write_record
from benchmarks.steps import time_in_turns
from benchmarks.study.modelled_time import KIND, MeasuredSteps, StepKey, flat_settings, step_key
from interstack.commands.dry_run import DescribedRun, describe_run
from interstack.constants import SAMPLE_RATE
from interstack.data.batch import Batch
from interstack.data.dataset import checksum
from interstack.distillation.module import Distillation
from interstack.errors import ConfigurationError, InterstackError
from interstack.growth.operators import plan_growth
from interstack.models.factory import load_front_end, load_teacher
from interstack.planning.measure import copy_of, grown
from interstack.planning.timed_step import TimedStep
from interstack.sweep.caches import why_not_cached
from interstack.sweep.study import Study
from interstack.target_cache.format import CacheDtype, Entry, write_shard
from interstack.target_cache.manifest import CacheRecord
from interstack.target_cache.reader import (
    CachedTeacher,
    SplitIndex,
    SplitTargets,
    TargetCache,
    write_front_end,
)
from interstack.target_cache.writer import ask_teacher
from interstack.tracking.flops import optimizer_flops, training_flops
from interstack.utils.environment import surroundings

_SPLIT: Final = "train"
_GROWTHS: Final = 2
"""Times that each growth step is taken."""


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        batches: Training batches.
        repetitions: Steps on each of them at every depth.
    """

    batches: int = 4
    repetitions: int = 3


class _Loaded(NamedTuple):
    """A batch, and the seconds that it took to make."""

    batch: Batch
    seconds: float


def main(arguments: Sequence[str]) -> int:
    """Measure, write the record, print the medians; return the process' exit status."""
    options, words = _parse(arguments)
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        effort = Effort(options.batches, options.repetitions)
        asked, configurations = _configurations(options, words)
        measured: list[MeasuredSteps] = []
        known: set[str] = set()
        run: DescribedRun | None = None
        for configuration in configurations:
            run = describe_run("step_times", configuration)
            cache = _cache_of(run, asked, must=options.study is None)
            key = json.dumps([_key(run, is_cached=_is_cached(run, cache)), run.growth.depths])
            if key not in known:
                known.add(key)
                measured.append(measure(run, cache, effort))
                _print(measured[-1])
        assert run is not None
        record = {
            "command": f"python -m benchmarks.study.step_times {shlex.join(_names(arguments))}",
            "surroundings": surroundings(
                run.trainer.strategy.root_device, str(run.trainer.precision)
            ),
            "measured": [each.to_primitives() for each in measured],
        }
        path = write_record(options.output, KIND, record)
    except InterstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the record is {path.name} in {path.parent}")
    return 0


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the command's own options, and the words that are `fit`'s."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study.step_times", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--config", action="append", help="configuration file, first to last")
    parser.add_argument("--overlay", action="append", default=[], help="laid over them")
    parser.add_argument("--study", type=Path, help="a sweep's study: every arm, each kind once")
    parser.add_argument("--cache", choices=get_args(CacheDtype), help="read targets from a cache")
    parser.add_argument("--threads", type=int, help="of this process")
    parser.add_argument("--batches", type=int, default=Effort().batches)
    parser.add_argument("--repetitions", type=int, default=Effort().repetitions)
    add_output(parser)
    options, words = parser.parse_known_args(arguments)
    if (options.config is None) == (options.study is None):
        parser.error("give either --config or --study")
    if options.study is not None and (options.overlay or options.cache or words):
        parser.error("--study says by itself what its arms are: leave other settings out")
    for name in ("threads", "batches", "repetitions"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} {value} has to be 1 or more")
    return options, words


def _configurations(
    options: argparse.Namespace, words: list[str]
) -> tuple[CacheDtype | None, list[list[str]]]:
    """Return the number format of cached targets, and the words of each configuration."""
    if options.study is None:
        files = [f"--config={path}" for path in (*options.config, *options.overlay)]
        return options.cache, [[*files, *words]]
    try:
        content = yaml.safe_load(options.study.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"--study {options.study} can't be read ({reason})") from error
    study = Study.from_primitives(content, str(options.study))
    first = study.seeds[0]
    return study.cache, [list(run.words) for run in study.runs() if run.seed == first]


def _names(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the words without the directories of this machine."""
    for word in arguments:
        name, equals, value = word.rpartition("=")
        path = Path(value)
        yield f"{name}{equals}{path.name}" if path.is_absolute() else word


def measure(run: DescribedRun, cache: CacheDtype | None, effort: Effort) -> MeasuredSteps:
    """Time the steps of a configuration.

    Args:
        run: What `fit` would work with; it is set up here.
        cache: Number format of a cache that is made of the batches' targets; None: as configured.
        effort: How much is measured.

    Raises:
        InterstackError: As `fit` would.
    """
    module, datamodule = run.module, run.datamodule
    datamodule.num_workers = 0  # whose work would disturb the steps; it is timed by itself
    datamodule.prepare_data()
    datamodule.setup("fit")
    with tempfile.TemporaryDirectory() as directory:
        if cache is not None:
            loaded = _cached(run, _load(run, effort.batches), cache, Path(directory))
            module.setup("fit")
        else:
            module.setup("fit")
            loaded = _load(run, effort.batches)
        return _time_steps(run, loaded, effort, is_cached=_is_cached(run, cache))


def _load(run: DescribedRun, number: int) -> list[_Loaded]:
    """Read so many training batches, or as many as an epoch has."""
    loaded = []
    begin = time.perf_counter()
    for batch in run.datamodule.train_dataloader():
        loaded.append(_Loaded(batch, time.perf_counter() - begin))
        if len(loaded) == number:
            break
        begin = time.perf_counter()
    return loaded


def _cached(
    run: DescribedRun, loaded: Sequence[_Loaded], dtype: CacheDtype, directory: Path
) -> list[_Loaded]:
    """Give a module that is not set up a cache of some batches; return them with its targets."""
    module, config = run.module, run.module.teacher_config
    device = run.trainer.strategy.root_device
    teacher = load_teacher(config, module.initial_depth).to(device)
    shares = module.student_config.front_end == "shared"
    source, front_end = module.student_config.front_end_source, None
    if source is not None:
        front_end = load_front_end(source, local_files_only=config.local_files_only).to(device)
    record = CacheRecord.of(config, teacher, dtype, with_features=shares, front_end=front_end)
    record.write(directory)
    write_front_end(teacher, directory, front_end)
    split = directory / _SPLIT
    split.mkdir()
    rows = []
    for number, (batch, _) in enumerate(loaded):
        shard = f"{number}.safetensors"
        lengths = batch.num_samples.tolist()
        entries = [
            Entry(id_, length, 0, length, checksum(waveform[:length]))
            for id_, length, waveform in zip(batch.ids, lengths, batch.waveforms, strict=True)
        ]
        told = ask_teacher(teacher, batch, record, device, front_end)
        write_shard(split / shard, list(zip(entries, told, strict=True)))
        rows += [(shard, row, entry) for row, entry in enumerate(entries)]
    SplitIndex(rows).write(split)
    targets = TargetCache(directory)
    targets.with_features = shares
    module._teacher.append(CachedTeacher(targets))  # before setup, which would load the teacher
    return [_recalled(each, targets.split(_SPLIT)) for each in loaded]


def _recalled(loaded: _Loaded, targets: SplitTargets) -> _Loaded:
    """Return a batch as workers would make it of a cache, and the seconds that they would take."""
    batch, seconds = loaded
    begin = time.perf_counter()
    batch = batch._replace(told=targets.collate(batch.ids))
    recalling = time.perf_counter() - begin
    if targets.replaces_audio:
        return _Loaded(batch._replace(waveforms=torch.empty(len(batch.ids), 0)), recalling)
    return _Loaded(batch, recalling + seconds)


def _time_steps(
    run: DescribedRun, loaded: Sequence[_Loaded], effort: Effort, *, is_cached: bool
) -> MeasuredSteps:
    """Take all steps in turns, then the growth steps."""
    trainer, window = run.trainer, run.trainer.accumulate_grad_batches
    device = trainer.strategy.root_device
    run.module.teacher.to(device)
    modules = [each.to(device) for each in grown(run.module, run.growth)]
    for each in modules:
        each.compile_models()
    steps = [TimedStep(trainer, each) for each in modules]
    padded = [_padded_seconds(each.batch) for each in loaded]
    mean = run.datamodule.mean_batch_seconds(1) or fmean(padded)

    def seconds(step: TimedStep, number: int) -> float:
        """Take a step; all but the optimizer's part goes with the padded audio."""
        split = step.run(loaded[number].batch)
        by_audio = window * (split.step - split.optimizer) * mean / padded[number]
        return by_audio + split.optimizer

    for step in steps:
        seconds(step, 0)  # the first time is slower
    times: dict[int, list[float]] = {step.depth: [] for step in steps}
    for number in range(len(loaded)):
        turns = [partial(seconds, step, number) for step in steps]
        for step, own in zip(
            steps, time_in_turns(turns, effort.repetitions, lambda _: None), strict=True
        ):
            times[step.depth] += own
    clip = fmean(_longest_seconds(each.batch) for each in loaded)
    growth = {
        (before.depth, after.depth): [
            _growth_seconds(run, before, after.depth, loaded[0].batch) for _ in range(_GROWTHS)
        ]
        for before, after in pairwise(modules)
    }
    return MeasuredSteps(
        _key(run, is_cached=is_cached),
        window * mean,
        times,
        [window * each.seconds * mean / of for each, of in zip(loaded, padded, strict=True)],
        {
            each.depth: window * mean * training_flops(each, each.depth, clip)
            + optimizer_flops(each, each.depth)
            for each in modules
        },
        growth,
    )


def _growth_seconds(run: DescribedRun, module: Distillation, depth: int, batch: Batch) -> float:
    """Return what growing takes, the new optimizer and its first, slower step included."""
    module = copy_of(module)
    begin = time.perf_counter()
    module.grow(plan_growth(run.growth.operator, module.lineage, depth))
    step = TimedStep(run.trainer, module)
    growing = time.perf_counter() - begin
    first, usual = step.run(batch).step, step.run(batch).step
    return growing + max(0.0, first - usual)


def _padded_seconds(batch: Batch) -> float:
    return len(batch.ids) * _longest_seconds(batch)


def _longest_seconds(batch: Batch) -> float:
    return int(batch.num_samples.max()) / SAMPLE_RATE


def _is_cached(run: DescribedRun, cache: CacheDtype | None) -> bool:
    return cache is not None or run.datamodule.target_cache is not None


def _key(run: DescribedRun, *, is_cached: bool) -> StepKey:
    return step_key(run.config.as_dict(), torch.get_num_threads(), is_cached=is_cached)


def _cache_of(run: DescribedRun, asked: CacheDtype | None, *, must: bool) -> CacheDtype | None:
    """Return the number format of the cache that a configuration is to have here, if any.

    Args:
        run: The configuration.
        asked: For a cache that is made here.
        must: Refuse a configuration that can't have one; else it has its teacher, as in a sweep.

    Raises:
        ConfigurationError: In that case.
    """
    if asked is None or run.datamodule.target_cache is not None:
        return None
    reason = why_not_cached(dict(flat_settings(run.config.as_dict())))
    if reason is not None and must:
        raise ConfigurationError(f"--cache is {asked}, but {reason}, or leave --cache out")
    return asked if reason is None else None


def _print(measured: MeasuredSteps) -> None:
    for depth in measured.seconds:
        cost = measured.cost(depth)
        print(
            f"depth {depth}: {cost.seconds:.4g} s a step of {measured.audio_seconds:.1f} s, "
            f"{cost.data_seconds:.3g} s its data, {cost.flops / 1e9:.4g} GFLOP",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

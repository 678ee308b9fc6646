"""Counting audio and time."""

from __future__ import annotations

import pytest
import torch

from interstack.data.batch import collate
from interstack.tracking.meters import AudioMeter, SpikeMeter, Stopwatch, Throughput


class FakeClock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_audio_is_counted_without_padding_and_with_it_and_taken_once() -> None:
    """Two utterances of 1 and 0.5 s are 1.5 s, and 2 s as wide as the batch."""
    meter = AudioMeter()
    batch = collate([torch.zeros(16_000), torch.zeros(8_000)], ["long", "short"])
    meter.add(batch)
    meter.add(batch)
    assert meter.take() == (3.0, 4.0)
    assert meter.take() == (0.0, 0.0)


def test_counting_leaves_the_batch_alone() -> None:
    """The utterances' lengths are not summed in place."""
    meter = AudioMeter()
    batch = collate([torch.zeros(16_000)], ["alone"])
    for _ in range(3):
        meter.add(batch)
    assert batch.num_samples.tolist() == [16_000]
    assert meter.take().seconds == 3.0


def test_the_audio_of_all_ranks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with the same batch have heard it twice."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda num_samples: num_samples.mul_(2))
    meter = AudioMeter()
    meter.add(collate([torch.zeros(16_000)], ["alone"]), world_size=2)
    assert meter.take() == (2.0, 2.0)


def test_laps_follow_each_other_without_a_gap() -> None:
    """Each lap begins where the last one ended."""
    clock = FakeClock()
    stopwatch = Stopwatch(clock)
    clock.now = 2.0
    assert stopwatch.lap() == 2.0
    clock.now = 5.0
    assert stopwatch.lap() == 3.0


def test_throughput_is_audio_over_time_within_the_window() -> None:
    """Old readings drop out, so that a change of pace shows."""
    clock = FakeClock()
    throughput = Throughput(window=10.0, clock=clock)
    assert throughput.update(100.0) is None
    for clock.now in (5.0, 10.0):
        assert throughput.update(20.0) == 4.0
    for clock.now in (15.0, 20.0, 25.0):
        rate = throughput.update(10.0)
    assert rate == 2.0


def test_readings_further_apart_than_the_window_still_give_a_rate() -> None:
    """A line a minute tells the pace of that minute."""
    clock = FakeClock()
    throughput = Throughput(window=10.0, clock=clock)
    throughput.update(0.0)
    clock.now = 60.0
    assert throughput.update(120.0) == 2.0


def test_an_interruption_is_no_part_of_the_pace() -> None:
    """After a pause the next reading only marks where to begin."""
    clock = FakeClock()
    throughput = Throughput(clock=clock)
    throughput.update(0.0)
    throughput.interrupt()
    assert throughput.is_idle
    clock.now = 1000.0
    assert throughput.update(50.0) is None
    clock.now = 1010.0
    assert throughput.update(50.0) == pytest.approx(5.0)


def test_a_spike_is_its_peak_and_the_way_back() -> None:
    """Smoothed over five steps, against the twenty before; logged once."""
    meter = SpikeMeter()
    for _ in range(30):
        meter.add(1.0)
    assert not meter.is_unlogged
    meter.start()
    assert meter.before == 1.0
    losses = [2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.5, 0.5, 0.5]
    logged = []
    for loss in losses:
        meter.add(loss)
        logged.append(meter.is_unlogged)
        meter.is_unlogged = False  # as who tells it does
    assert logged.index(True) == 9  # the first five whose mean is 1 again: 1.5 1.0 0.5 0.5 0.5 …
    assert sum(logged) == 1
    assert meter.recovered_after == 10
    assert meter.peak == 2.0
    again = SpikeMeter.of_state(meter.state_dict())
    assert again.state_dict() == meter.state_dict()


def test_a_growth_step_without_earlier_steps_has_no_spike() -> None:
    """Two growths in a row, or a run that begins with one."""
    meter = SpikeMeter()
    meter.start()
    for _ in range(10):
        meter.add(1.0)
    assert not meter.is_unlogged
    assert meter.peak is None

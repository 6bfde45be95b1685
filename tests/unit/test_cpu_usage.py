"""cpu_usage is the share of the processors' time that was spent on work, as psutil and the sample agent count it."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.capture import device
from monitor.detect.device import CpuTime, DeviceReading, device_metrics
from monitor.detect.metrics import CPU_USAGE, Metric, merged

if TYPE_CHECKING:
    from collections.abc import Sequence


def reading(busy_s: float, all_s: float) -> DeviceReading:
    return DeviceReading(interfaces={}, cpu=CpuTime(busy_s=busy_s, all_s=all_s))


def percent(metrics: Sequence[Metric]) -> float:
    (metric,) = metrics
    assert (metric.name, metric.kind) == (CPU_USAGE, "number")
    assert isinstance(metric.value, float)
    return metric.value


def test_it_agrees_with_psutil_over_the_same_time() -> None:
    before = device.read(cpu=True)
    theirs_before = psutil.cpu_times()
    ours_s, deadline = os.times().user, time.monotonic() + 60
    while os.times().user - ours_s < 1:
        hashlib.sha256(bytes(1 << 20)).digest()
        assert time.monotonic() < deadline
    theirs_now = psutil.cpu_times()
    now = device.read(cpu=True)
    grown = {name: getattr(theirs_now, name) - getattr(theirs_before, name) for name in theirs_now._fields}
    all_s = sum(grown.values()) - grown["guest"] - grown["guest_nice"]
    theirs = 100 * (all_s - grown["idle"] - grown["iowait"]) / all_s
    # between the two looks at either end a few clock ticks may pass
    assert percent(device_metrics(before, now)) == pytest.approx(theirs, abs=100 * 0.1 / all_s)
    assert 0 < percent(device_metrics(before, now)) <= 100


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1, 1e6), st.floats(0, 1))
def test_it_is_the_busy_share_of_what_passed(busy_s: float, idle_s: float, passed_s: float, share: float) -> None:
    before = reading(busy_s, busy_s + idle_s)
    now = reading(busy_s + share * passed_s, busy_s + idle_s + passed_s)
    if now.cpu is not None and before.cpu is not None and now.cpu.all_s - before.cpu.all_s >= 1:
        assert percent(device_metrics(before, now)) == pytest.approx(100 * share, abs=0.1)


def test_after_another_boot_it_counts_from_zero() -> None:
    assert percent(device_metrics(reading(500, 1000), reading(10, 40))) == 25.0


def test_what_nobody_asked_for_or_too_short_a_time_says_nothing() -> None:
    assert device.read().cpu is None
    assert device_metrics(None, reading(1, 10)) == []
    assert device_metrics(device.read(), reading(1, 10)) == []
    assert device_metrics(reading(1, 10), device.read()) == []
    assert device_metrics(reading(1, 10), reading(1.5, 10.5)) == []


def test_a_share_is_never_added_up() -> None:
    earlier, now = Metric(CPU_USAGE, "number", 60.0), Metric(CPU_USAGE, "number", 70.0)
    assert merged([earlier], [now]) == [now]

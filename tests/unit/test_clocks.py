"""A behavior has the clock of the event where an expectation says the very same, else that of the window."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from monitor.detect.clocks import Judged, clocks, expecting, owner
from monitor.detect.profile import load
from monitor.expect import MAX_PORTS, MAX_PREFIXES, Expect
from monitor.watch import Watch

APP = Watch(name="app", kind="process", value="app")


MANY = [f"10.0.{number // 256}.{number % 256}" for number in range(MAX_PREFIXES + 1)]
Entry = tuple[str, str, dict[str, Any]]


def judged(
    *entries: Entry,
    watches: tuple[Watch, ...] = (APP,),
    unknown: tuple[str, ...] = (),
    cpu_usage: bool = False,
) -> tuple[Judged, ...]:
    behaviors = [
        {"name": f"b{number}", "metric": metric, "criteria": {"comparisonOperator": operator, "value": value}}
        for number, (metric, operator, value) in enumerate(entries)
    ]
    return clocks(load(json.dumps({"behaviors": behaviors}).encode()), watches, unknown=unknown, cpu_usage=cpu_usage)


def expectation(*entries: Entry) -> Expect:
    (watch,) = expecting((APP,), judged(*entries))
    return watch.expect


@pytest.mark.parametrize(
    ("metric", "operator", "value", "same"),
    [
        ("num_child_procs_app", "less-than-equals", {"number": 0}, {"child_processes": 0}),
        ("num_child_procs_app", "less-than", {"number": 1}, {"child_processes": 0}),
        ("num_child_procs_app", "less-than", {"number": 0.5}, {"child_processes": 0}),
        ("num_child_procs_app", "less-than-equals", {"number": 0.9}, {"child_processes": 0}),
        ("child_procs_peak_app", "less-than-equals", {"number": 3}, {"child_processes": 3}),
        ("child_procs_peak_app", "less-than", {"number": 3}, {"child_processes": 2}),
        (
            "destination_ips_app",
            "in-cidr-set",
            {"cidrs": ["10.1.2.3/8", "fd00::/8"]},
            {"destinations": ("10.0.0.0/8", "fd00::/8")},
        ),
        ("child_exes_app", "in-set", {"strings": ["/usr/bin/env"]}, {"executables": ("/usr/bin/env",)}),
        ("child_exes_app", "in-set", {"strings": []}, {"executables": ()}),
        ("destination_ips_app", "in-cidr-set", {"cidrs": []}, {"destinations": ()}),
        ("listening_ports_app", "in-set", {"numbers": [443, 80, 80.0, 0, 70000]}, {"listening_ports": (80, 443)}),
        ("listening_ports_app", "in-set", {"numbers": []}, {"listening_ports": ()}),
    ],
)
def test_what_an_expectation_says_as_well_is_judged_at_the_event(
    metric: str, operator: str, value: dict[str, Any], same: dict[str, object]
) -> None:
    (one,) = judged((metric, operator, value))
    assert (one.clock, one.watch, one.added) == ("instant", "app", True)
    assert expectation((metric, operator, value)) == Expect(**same)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "operator", "value"),
    [
        ("num_child_procs_app", "less-than-equals", {"number": 1}),  # one after the other are two of the window
        ("num_child_procs_app", "less-than-equals", {"number": -1}),
        ("num_child_procs_app", "greater-than", {"number": 0}),
        ("child_procs_alive_app", "less-than-equals", {"number": 0}),  # of its end only
        ("child_procs_peak_app", "less-than", {"number": 0}),
        ("child_procs_peak_app", "less-than", {"number": 1e300}),
        ("destination_ips_app", "not-in-cidr-set", {"cidrs": ["10.0.0.0/8"]}),
        (
            "destination_ips_app",
            "in-cidr-set",
            {"cidrs": MANY},
        ),
        ("listening_ports_app", "not-in-set", {"numbers": [22]}),
        ("listening_ports_app", "in-set", {"numbers": list(range(1, MAX_PORTS + 2))}),
        ("destination_ports_app", "in-set", {"numbers": [443]}),
        ("aws:listening-tcp-ports", "in-port-set", {"ports": [22]}),
        ("events_lost", "less-than", {"number": 1}),
    ],
)
def test_what_no_expectation_says_waits_for_the_window(metric: str, operator: str, value: dict[str, Any]) -> None:
    (one,) = judged((metric, operator, value))
    assert (one.clock, one.added) == ("window", False)
    assert one.why
    assert expectation((metric, operator, value)) == Expect()


@pytest.mark.parametrize(
    "more",
    [{"consecutiveDatapointsToAlarm": 2}, {"consecutiveDatapointsToClear": 2}],
)
def test_consecutive_datapoints_are_windows(more: dict[str, int]) -> None:
    criteria = {"comparisonOperator": "less-than-equals", "value": {"number": 0}} | more
    entry = {"name": "b", "metric": "num_child_procs_app", "criteria": criteria}
    (one,) = clocks(load(json.dumps({"behaviors": [entry]}).encode()), (APP,))
    assert (one.clock, one.why) == ("window", "it asks for consecutive datapoints")


def test_a_suppressed_behavior_is_not_told_at_the_event() -> None:
    criteria = {"comparisonOperator": "less-than-equals", "value": {"number": 0}}
    entry = {"name": "b", "metric": "num_child_procs_app", "criteria": criteria, "suppressAlerts": True}
    (one,) = clocks(load(json.dumps({"behaviors": [entry]}).encode()), (APP,))
    assert one.clock == "window"


def test_an_expectation_of_the_watch_itself_stays_and_is_not_judged_twice() -> None:
    strict = msgspec.structs.replace(APP, expect=Expect(child_processes=0))
    loose = msgspec.structs.replace(APP, expect=Expect(child_processes=5))
    entry = ("num_child_procs_app", "less-than-equals", {"number": 0})
    (same,) = judged(entry, watches=(strict,))
    assert (same.clock, same.added) == ("instant", False)
    (other,) = judged(entry, watches=(loose,))
    assert (other.clock, other.why) == ("window", "expect.child_processes of watch app is taken")
    for watch in (strict, loose):
        assert expecting((watch,), judged(entry, watches=(watch,))) == (watch,)


def test_of_two_behaviors_for_one_expectation_the_second_waits_for_the_window() -> None:
    peaks = [("child_procs_peak_app", "less-than-equals", {"number": number}) for number in (4, 2)]
    assert [one.clock for one in judged(*peaks)] == ["instant", "window"]
    assert expectation(*peaks) == Expect(child_processes=4)


def test_metrics_that_nothing_reports_are_named_with_the_reason() -> None:
    entries = [
        ("roots_nobody", "less-than", {"number": 1}),
        ("wire_bytes_in_ap", "less-than", {"number": 1}),
        ("batteryPercentage", "greater-than", {"number": 75}),
        ("cpu_usage", "less-than", {"number": 90}),
        ("packets_in_app", "less-than", {"number": 1}),
        ("bytes_in_app", "less-than", {"number": 1}),
    ]
    found = judged(*entries, unknown=("packets_in",))
    assert [one.clock for one in found] == ["none"] * 5 + ["window"]
    assert [one.why for one in found[:5]] == [
        "no watch is called nobody",
        "no watch is called ap",
        "batteryPercentage is no metric of kinwatch",
        "cpu_usage needs report.cpu_usage = true",
        "packets_in_app is not known with this capture and configuration",
    ]
    (usage,) = judged(("cpu_usage", "less-than", {"number": 90}), cpu_usage=True)
    assert usage.clock == "window"


def test_the_watch_of_a_metric_is_found_by_its_whole_name() -> None:
    watches = {"app", "in_app", "bytes_in_app"}
    assert owner("bytes_in_app", watches) == ("bytes_in", "app")
    assert owner("bytes_in_in_app", watches) == ("bytes_in", "in_app")
    assert owner("wire_bytes_in_app", watches) == ("wire_bytes_in", "app")
    assert owner("app", watches) == ("", "")
    assert owner("num_child_procs_", watches) == ("", "")

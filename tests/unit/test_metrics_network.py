"""Metrics of a window say what sockets of a watched application did, and behaviors judge them."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.defender.report import document
from monitor.detect import profile
from monitor.detect.behaviors import aws_form, expected, rules, violated
from monitor.detect.metrics import FIELDS, Metric, lower_bound_metrics, merged, window_metrics
from monitor.detect.snapshot import NETWORK, TRAFFIC, Snapshot, WatchSnapshot
from monitor.expect import Expect
from monitor.remote import Remote, endpoint

PROCESSES = ("roots", "alive", "peak", "spawned", "adopted", "execs", "exits", "root_starts", "root_exits")
OF_NETWORK = {what: fields for what, fields in FIELDS.items() if not NETWORK.isdisjoint(fields)}
NOTHING = Expect(destinations=(), listening_ports=())
COUNTED = [what for what in OF_NETWORK if what in TRAFFIC]


def snapshot(**fields: Any) -> Snapshot:  # noqa: ANN401 - any field
    """A moment of one watch; `unknown` is the snapshot's own."""
    unknown = fields.pop("unknown", frozenset())
    given: dict[str, Any] = {"name": "myapp", "window_peak": 0} | dict.fromkeys(PROCESSES, 0) | fields
    watch = WatchSnapshot(**given)
    return Snapshot(wall_ns=0, boot_ns=0, watches=(watch,), lost={}, unknown=unknown)


def told(metrics: list[Metric]) -> dict[str, object]:
    """The network's metrics by the part of their name before the watch's."""
    names = {metric.name.removesuffix("_myapp"): metric.value for metric in metrics}
    return {name: value for name, value in names.items() if name in OF_NETWORK}


def remote(address: str, port: int = 443, protocol: str = "tcp", *, incoming: bool = False) -> Remote:
    return Remote(address=address, port=port, protocol=protocol, incoming=incoming)


counters = st.fixed_dictionaries({field: st.integers(0, 1 << 40) for field in TRAFFIC})


@settings(deadline=None)
@given(st.lists(counters, min_size=1, max_size=6))
def test_counters_of_windows_add_up_to_what_was_counted(growth: list[dict[str, int]]) -> None:
    total = dict.fromkeys(TRAFFIC, 0)
    baseline, sums = None, dict.fromkeys(COUNTED, 0)
    for window in growth:
        total = {field: total[field] + window[field] for field in TRAFFIC}
        now = snapshot(**total)
        metrics = told(window_metrics(baseline, now))
        assert {what: metrics[what] for what in COUNTED} == {what: window[what] for what in COUNTED}
        sums = {what: sums[what] + window[what] for what in COUNTED}
        baseline = now
    assert sums == {what: total[what] for what in COUNTED}


@pytest.mark.parametrize("fallen", TRAFFIC)
def test_hooks_that_began_anew_count_from_zero_and_the_processes_go_on(fallen: str) -> None:
    before = snapshot(spawned=7, **dict.fromkeys(TRAFFIC, 100))
    after = snapshot(spawned=9, **(dict.fromkeys(TRAFFIC, 150) | {fallen: 3}))
    metrics = window_metrics(before, after)
    expected_now = dict.fromkeys(COUNTED, 150) | ({fallen: 3} if fallen in COUNTED else {})
    assert {what: told(metrics)[what] for what in COUNTED} == expected_now
    assert Metric("child_procs_spawned_myapp", "number", 2) in metrics


def test_a_counter_that_is_no_longer_known_is_no_new_life_of_the_others() -> None:
    before = snapshot(bytes_in=100, packets_in=50)
    after = snapshot(bytes_in=130, packets_in=0, unknown=frozenset({"packets_in"}))
    metrics = told(window_metrics(before, after))
    assert metrics["bytes_in"] == 30
    assert "packets_in" not in metrics


@settings(deadline=None)
@given(st.frozensets(st.sampled_from(sorted(NETWORK))), st.booleans())
def test_what_is_unknown_is_left_out_not_zero(unknown: frozenset[str], in_baseline: bool) -> None:  # noqa: FBT001
    before = snapshot(unknown=unknown if in_baseline else frozenset())
    now = snapshot(unknown=frozenset() if in_baseline else unknown)
    present = {what for what, fields in OF_NETWORK.items() if unknown.isdisjoint(fields)}
    assert told(window_metrics(before, now)).keys() == present


REMOTES = (
    remote("10.0.0.1", 443),
    remote("10.0.0.1", 80),
    remote("fd00::1", 53, "udp"),
    remote("10.0.0.9", 8080, incoming=True),
)


def test_destinations_are_outgoing_and_told_once() -> None:
    metrics = told(window_metrics(None, snapshot(remotes=REMOTES, listening_ports=(53, 8080))))
    assert metrics["destination_ips"] == ("10.0.0.1", "fd00::1")
    assert metrics["destination_ports"] == (443, 80, 53)
    assert metrics["listening_ports"] == (53, 8080)


def test_an_empty_list_is_not_in_the_report_and_a_zero_is() -> None:
    custom = document(1, window_metrics(None, snapshot()), None)["custom_metrics"]
    names = {name.removesuffix("_myapp") for name in custom}
    assert names & OF_NETWORK.keys() == set(COUNTED)
    assert custom["bytes_in_myapp"] == [{"number": 0}]
    full = document(1, window_metrics(None, snapshot(remotes=REMOTES, listening_ports=(8080,))), None)["custom_metrics"]
    assert full["destination_ips_myapp"] == [{"ip_list": ["10.0.0.1", "fd00::1"]}]
    assert full["destination_ports_myapp"] == [{"number_list": [53, 80, 443]}]
    assert full["listening_ports_myapp"] == [{"number_list": [8080]}]


def test_a_window_that_another_life_goes_on_with_adds_counters_and_joins_lists() -> None:
    earlier = window_metrics(None, snapshot(bytes_in=5, remotes=REMOTES[:2], listening_ports=(1, 2)))
    later = window_metrics(None, snapshot(bytes_in=7, remotes=REMOTES[1:], listening_ports=(2, 3)))
    metrics = told(merged(earlier, later))
    assert metrics["bytes_in"] == 12
    assert metrics["destination_ips"] == ("10.0.0.1", "fd00::1")
    assert metrics["destination_ports"] == (443, 80, 53)
    assert metrics["listening_ports"] == (1, 2, 3)


def test_watches_whose_names_look_like_metrics_are_merged_apart() -> None:
    for name in ("in_x", "bytes_in", "out", "ips"):
        joined = merged(
            window_metrics(None, snapshot(name=name, bytes_in=1, wire_bytes_in=10)),
            window_metrics(None, snapshot(name=name, bytes_in=2, wire_bytes_in=20)),
        )
        seen = {metric.name: metric.value for metric in joined}
        assert (seen[f"bytes_in_{name}"], seen[f"wire_bytes_in_{name}"]) == (3, 30)


def test_more_than_was_kept_makes_a_list_a_lower_bound() -> None:
    assert lower_bound_metrics(snapshot(remotes_missed=1)) == ["destination_ports_myapp", "destination_ips_myapp"]
    assert lower_bound_metrics(snapshot(listening_missed=1)) == ["listening_ports_myapp"]
    assert lower_bound_metrics(snapshot(remotes_missed=1, listening_missed=1, unknown=NETWORK)) == []


def test_expectations_are_written_as_aws_writes_behaviors() -> None:
    behaviors = expected(
        "myapp", Expect(child_processes=0, destinations=("10.0.0.0/8", "fd00::/8"), listening_ports=(80, 8080))
    )
    written = [aws_form(behavior) for behavior in behaviors]
    once = {"consecutiveDatapointsToAlarm": 1, "consecutiveDatapointsToClear": 1}
    assert written[1:] == [
        {
            "name": "destinations_myapp",
            "metric": "destination_ips_myapp",
            "criteria": {"comparisonOperator": "in-cidr-set", "value": {"cidrs": ("10.0.0.0/8", "fd00::/8")}, **once},
        },
        {
            "name": "listening_ports_myapp",
            "metric": "listening_ports_myapp",
            "criteria": {"comparisonOperator": "in-set", "value": {"numbers": (80, 8080)}, **once},
        },
    ]
    # What kinwatch writes, its own Device Defender reads.
    read = profile.load(msgspec.json.encode({"securityProfileName": "p", "behaviors": written}))
    assert [behavior.normal() for behavior in read.behaviors] == ["<= 0", "in 10.0.0.0/8, fd00::/8", "in 80, 8080"]
    assert read.elsewhere == ()
    nothing = [aws_form(behavior) for behavior in expected("myapp", NOTHING)]
    assert [behavior.normal() for behavior in profile.load(msgspec.json.encode({"behaviors": nothing})).behaviors] == [
        "in nothing",
        "in nothing",
    ]


def test_a_destination_with_a_port_or_a_name_is_a_rule_for_no_behavior_says_it() -> None:
    for expect in (Expect(destinations=("10.0.0.0/8:443", "fd00::/8")), Expect(destinations=("[::1/128]:53",))):
        assert expected("myapp", expect) == ()
        assert rules("myapp", expect) == ({"watch": "myapp", "rule": "destinations", "value": expect.destinations},)
    assert rules("myapp", Expect(destinations=("10.0.0.0/8", "fd00::/8"))) == ()
    named = Expect(destinations=("10.0.0.0/8",), destination_names=("broker.local",))
    assert expected("myapp", named) == ()
    assert [rule["rule"] for rule in rules("myapp", named)] == ["destinations", "destination_names"]
    assert rules("myapp", NOTHING) == ()


addresses = st.ip_addresses().map(str)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.ip_addresses(), st.integers(0, 32)), max_size=5),
    st.lists(addresses, max_size=5, unique=True),
)
def test_a_destination_outside_every_network_breaks_the_expectation(
    prefixes: list[tuple[Any, int]], seen: list[str]
) -> None:
    networks = [ipaddress.ip_network(f"{address}/{length}", strict=False) for address, length in prefixes]
    remotes = tuple(remote(address) for address in seen)
    found = violated(
        expected("myapp", Expect(destinations=tuple(map(str, networks)))),
        window_metrics(None, snapshot(remotes=remotes)),
    )
    plain = [getattr(ipaddress.ip_address(text), "ipv4_mapped", None) or ipaddress.ip_address(text) for text in seen]
    assert bool(found) == any(all(address not in network for network in networks) for address in plain)


@settings(deadline=None)
@given(st.sets(st.integers(1, 65535), max_size=5), st.sets(st.integers(1, 65535), max_size=5))
def test_a_port_that_is_not_in_the_set_breaks_the_expectation(allowed: set[int], open_now: set[int]) -> None:
    metrics = window_metrics(None, snapshot(listening_ports=tuple(sorted(open_now))))
    found = violated(expected("myapp", Expect(listening_ports=tuple(sorted(allowed)))), metrics)
    assert bool(found) == (not open_now <= allowed)


def test_no_expectation_and_an_absent_metric_are_not_judged() -> None:
    assert expected("myapp", Expect()) == ()
    unknown = window_metrics(None, snapshot(remotes=REMOTES, listening_ports=(1,), unknown=NETWORK))
    assert violated(expected("myapp", NOTHING), unknown) == []
    known = window_metrics(None, snapshot(remotes=REMOTES, listening_ports=(1,)))
    assert [found.behavior.name for found in violated(expected("myapp", NOTHING), known)] == [
        "destinations_myapp",
        "listening_ports_myapp",
    ]


def test_an_endpoint_of_ipv6_stands_in_brackets() -> None:
    assert (endpoint("10.0.0.1", 80), endpoint("fd00::1", 443)) == ("10.0.0.1:80", "[fd00::1]:443")

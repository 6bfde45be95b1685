"""A Defender document carries the metrics truly, in every spelling, and fits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.defender.names import LONG, SHORT
from monitor.defender.report import Format, Names, document, encode, fit, next_report_id
from monitor.defender.validate import parse, validate
from monitor.detect.device import Connection, DeviceBlocks, NetworkStats, Port
from monitor.detect.metrics import Metric
from monitor.errors import ReportInvalid

if TYPE_CHECKING:
    from monitor.detect.metrics import MetricKind

DEVICE = DeviceBlocks(
    tcp_ports=(Port(22, "0.0.0.0"), Port(22, "::"), Port(8080, "lo")),  # noqa: S104 - nothing is bound
    tcp_ports_total=7,
    udp_ports=(Port(53),),
    udp_ports_total=1,
    connections=(Connection("192.0.2.1:443", 40000, "eth0"), Connection("[2001:db8::1]:443", 40001)),
    connections_total=2,
    network_stats=NetworkStats(bytes_in=1, bytes_out=2, packets_in=3, packets_out=4),
)

names = st.from_regex(r"(?!aws:)[a-zA-Z0-9:_-]{1,128}", fullmatch=True)
numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
metrics = st.lists(
    st.one_of(
        st.builds(Metric, names, st.just("number"), numbers),
        st.builds(Metric, names, st.just("number-list"), st.lists(numbers).map(tuple)),
        st.builds(Metric, names, st.just("string-list"), st.lists(st.text()).map(tuple)),
        st.builds(Metric, names, st.just("ip-address-list"), st.lists(st.ip_addresses().map(str)).map(tuple)),
    ),
    unique_by=lambda metric: metric.name,
)
ports = st.lists(st.builds(Port, st.integers(1, 65535), st.sampled_from(["", "lo", "eth0", "::"]))).map(tuple)
count = st.integers(0, 2**53)
devices = st.builds(
    DeviceBlocks,
    tcp_ports=ports,
    tcp_ports_total=count,
    udp_ports=ports,
    udp_ports_total=count,
    connections=st.lists(
        st.builds(
            Connection,
            st.ip_addresses(v=4).map(lambda ip: f"{ip}:1") | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]:65535"),
            st.integers(1, 65535),
        )
    ).map(tuple),
    connections_total=count,
    network_stats=st.none()
    | st.builds(NetworkStats, bytes_in=count, bytes_out=count, packets_in=count, packets_out=count),
)


@settings(deadline=None)
@given(st.integers(1, 2**63 - 1), metrics, st.none() | devices, st.sampled_from(["json", "cbor"]))
def test_every_spelling_of_a_report_is_valid_and_says_the_same(
    report_id: int,
    given_metrics: list[Metric],
    device: DeviceBlocks | None,
    format: Format,  # noqa: A002
) -> None:
    long = parse(encode(document(report_id, given_metrics, device, "long"), format), format)
    short = parse(encode(document(report_id, given_metrics, device, "short"), format), format)
    assert long == short == document(report_id, given_metrics, device, "long")
    assert long["header"] == {"report_id": report_id, "version": "1.0"}
    for metric in given_metrics:
        sent = long.get("custom_metrics", {}).get(metric.name)
        if isinstance(metric.value, tuple):
            assert (sent is None) == (not [v for v in metric.value if v != ""])
        else:
            assert sent[0]["number"] == pytest.approx(metric.value, rel=1e-14)


def test_the_documented_report_is_written_exactly() -> None:
    listed: list[tuple[MetricKind, Any]] = [
        ("number", 3),
        ("number-list", (2, 1, 2)),
        ("string-list", ("/usr/bin/cat", "/opt/my app/läuft")),
        ("ip-address-list", ("172.0.0.10", "::ffff:172.0.0.1")),
    ]
    made = document(1530304554, [Metric(kind, kind, value) for kind, value in listed], DEVICE)
    assert made == {
        "header": {"report_id": 1530304554, "version": "1.0"},
        "metrics": {
            "listening_tcp_ports": {
                "ports": [
                    {"port": 22, "interface": "0.0.0.0"},  # noqa: S104
                    {"port": 22, "interface": "::"},
                    {"port": 8080, "interface": "lo"},
                ],
                "total": 7,
            },
            "listening_udp_ports": {"ports": [{"port": 53}], "total": 1},
            "tcp_connections": {
                "established_connections": {
                    "connections": [
                        {"remote_addr": "192.0.2.1:443", "local_port": 40000, "local_interface": "eth0"},
                        {"remote_addr": "[2001:db8::1]:443", "local_port": 40001},
                    ],
                    "total": 2,
                }
            },
            "network_stats": {"bytes_in": 1, "bytes_out": 2, "packets_in": 3, "packets_out": 4},
        },
        "custom_metrics": {
            "number": [{"number": 3}],
            "number-list": [{"number_list": [1, 2]}],
            "string-list": [{"string_list": ["/opt/my_app/l_uft", "/usr/bin/cat"]}],
            "ip-address-list": [{"ip_list": ["172.0.0.1", "172.0.0.10"]}],
        },
    }


def test_short_names_are_those_of_the_guide() -> None:
    made = document(7, [Metric("num_child_procs_myapp", "number", 1)], DEVICE, "short")
    assert json.loads(encode(made)) == {
        "hed": {"rid": 7, "v": "1.0"},
        "met": {
            "tp": {"pts": [{"pt": 22, "if": "0.0.0.0"}, {"pt": 22, "if": "::"}, {"pt": 8080, "if": "lo"}], "t": 7},  # noqa: S104
            "up": {"pts": [{"pt": 53}], "t": 1},
            "tc": {
                "ec": {
                    "cs": [
                        {"rad": "192.0.2.1:443", "lp": 40000, "li": "eth0"},
                        {"rad": "[2001:db8::1]:443", "lp": 40001},
                    ],
                    "t": 2,
                }
            },
            "ns": {"bi": 1, "bo": 2, "pi": 3, "po": 4},
        },
        "cmet": {"num_child_procs_myapp": [{"number": 1}]},
    }


def test_long_and_short_keys_are_one_to_one() -> None:
    assert len(LONG) == len(SHORT)
    assert {LONG[short] for short in SHORT.values()} == set(SHORT)


def test_a_custom_metric_named_like_a_key_keeps_its_name() -> None:
    made = document(1, [Metric("total", "number", 1), Metric("t", "number", 2)], None, "short")
    assert made["cmet"] == {"total": [{"number": 1}], "t": [{"number": 2}]}
    assert validate(made)["custom_metrics"] == made["cmet"]


def test_a_report_without_metrics_is_still_a_report() -> None:
    assert validate(document(1, [], None)) == {"header": {"report_id": 1, "version": "1.0"}, "custom_metrics": {}}


def test_empty_custom_lists_are_left_out_and_empty_port_lists_stay() -> None:
    quiet = DeviceBlocks(
        tcp_ports=(),
        tcp_ports_total=0,
        udp_ports=(),
        udp_ports_total=0,
        connections=(),
        connections_total=0,
        network_stats=None,
    )
    made = document(1, [Metric("child_exes_myapp", "string-list", ()), Metric("n", "number", 0)], quiet)
    assert made["custom_metrics"] == {"n": [{"number": 0}]}
    assert made["metrics"]["listening_tcp_ports"] == {"ports": [], "total": 0}
    assert "network_stats" not in made["metrics"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True])
def test_what_is_no_number_never_leaves(value: float) -> None:
    with pytest.raises(ReportInvalid, match="speed"):
        document(1, [Metric("speed", "number", value)], None)


def test_a_scope_never_leaves_the_device_and_a_wrong_address_is_refused() -> None:
    made = document(1, [Metric("a", "ip-address-list", ("fe80::1%eth0",))], None)
    assert made["custom_metrics"]["a"] == [{"ip_list": ["fe80::1"]}]
    with pytest.raises(ReportInvalid, match="300"):
        document(1, [Metric("a", "ip-address-list", ("300.0.0.1",))], None)


@pytest.mark.parametrize("names_used", ["long", "short"])
@pytest.mark.parametrize("format", ["json", "cbor"])
def test_a_report_too_long_loses_list_entries_and_says_which(names_used: Names, format: Format) -> None:  # noqa: A002
    paths = tuple(f"/usr/lib/program-{number:05}" for number in range(6000))
    many = DeviceBlocks(
        tcp_ports=tuple(Port(port, "eth0") for port in range(1, 3001)),
        tcp_ports_total=3000,
        udp_ports=(),
        udp_ports_total=0,
        connections=(),
        connections_total=0,
        network_stats=None,
    )
    metrics_sent = [Metric("child_exes_a", "string-list", paths), Metric("num_child_procs_a", "number", 6000)]
    whole = document(1, metrics_sent, many, names_used)
    before = encode(whole, format)
    trimmed = fit(whole, format)
    assert len(trimmed.payload) <= 128 * 1024 < len(before)
    assert encode(whole, format) == before
    seen = parse(trimmed.payload, format)
    assert seen["metrics"]["listening_tcp_ports"]["total"] == 3000
    assert seen["custom_metrics"]["num_child_procs_a"] == [{"number": 6000}]
    kept = len(seen["custom_metrics"]["child_exes_a"][0]["string_list"])
    kept += len(seen["metrics"]["listening_tcp_ports"]["ports"])
    assert kept + sum(trimmed.dropped.values()) == 9000
    assert seen["custom_metrics"]["child_exes_a"][0]["string_list"][0] == paths[0]


def test_a_report_that_fits_loses_nothing() -> None:
    made = document(1, [Metric("a", "string-list", ("x", "y"))], DEVICE)
    trimmed = fit(made, "cbor")
    assert (trimmed.document, trimmed.dropped, cbor2.loads(trimmed.payload)) == (made, {}, made)


def test_a_report_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ReportInvalid, match="no list to shorten"):
        fit(document(1, [Metric("a", "number", 1)], None), max_bytes=20)


@settings(deadline=None)
@given(st.none() | st.integers(1, 2**40), st.integers(0, 2**40))
def test_report_ids_grow_whatever_the_clock_does(last: int | None, now_s: int) -> None:
    following = next_report_id(last, now_s)
    assert following >= 1
    assert following >= now_s
    assert last is None or following > last

"""The local judge of reports refuses what version 1.0 does not allow, by the path of the first problem."""

from __future__ import annotations

import copy
import json
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.defender.validate import parse, validate
from monitor.errors import ReportInvalid

GOOD: dict[str, Any] = {
    "header": {"report_id": 1, "version": "1.0"},
    "metrics": {
        "listening_tcp_ports": {"ports": [{"port": 22, "interface": "lo"}, {"port": 23}], "total": 2},
        "listening_udp_ports": {"ports": [], "total": 0},
        "network_stats": {"bytes_in": 1, "bytes_out": 0, "packets_in": 0, "packets_out": 0},
        "tcp_connections": {
            "established_connections": {"connections": [{"remote_addr": "[::1]:80", "local_port": 5}], "total": 1}
        },
    },
    "custom_metrics": {
        "n": [{"number": -1.5}],
        "l": [{"number_list": [1]}],
        "s": [{"string_list": ["value_1"]}],
        "i": [{"ip_list": ["10.0.0.1", "::1"]}],
    },
}
MISSING = object()
PORTS = "metrics.listening_tcp_ports"
ESTABLISHED = "metrics.tcp_connections.established_connections"


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with the value at a dotted path replaced (MISSING: taken away)."""
    made = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    node: Any = made
    for part in way:
        node = node[int(part) if isinstance(node, list) else part]
    if value is MISSING:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return made


def test_the_documented_report_passes_as_it_is() -> None:
    assert validate(GOOD) == GOOD
    assert parse(json.dumps(GOOD).encode(), "json") == parse(cbor2.dumps(GOOD), "cbor") == GOOD


@pytest.mark.parametrize("part", ["metrics", "custom_metrics"])
def test_one_of_metrics_and_custom_metrics_is_enough(part: str) -> None:
    assert part not in validate(changed(part, MISSING))


def test_a_report_needs_metrics_of_some_kind() -> None:
    with pytest.raises(ReportInvalid, match="metrics or custom_metrics"):
        validate({"header": GOOD["header"]})


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("header", MISSING, "header"),
        ("header.report_id", MISSING, "report_id"),
        ("header.version", MISSING, "version"),
        ("header.report_id", 0, "header.report_id"),
        ("header.report_id", True, "header.report_id"),
        ("header.report_id", 1.0, "header.report_id"),
        ("header.report_id", "1", "header.report_id"),
        ("header.report_id", 2**63, "header.report_id"),
        ("header.version", "1", "header.version"),
        ("header.version", 1.0, "header.version"),
        ("header.rid", 1, "header: .*mixed"),
        ("extra", 1, "'extra'"),
        ("metrics", None, "metrics: .*null"),
        ("metrics.cpu_usage", {}, "'cpu_usage'"),
        (f"{PORTS}.ports", {}, f"{PORTS}.ports"),
        (f"{PORTS}.total", -1, f"{PORTS}.total"),
        (f"{PORTS}.ports.1", 23, r"ports\[1\]"),
        (f"{PORTS}.ports.1.port", 0, r"ports\[1\].port"),
        (f"{PORTS}.ports.1.port", 65536, r"ports\[1\].port"),
        (f"{PORTS}.ports.1.port", MISSING, r"ports\[1\]: .*'port'"),
        (f"{PORTS}.ports.0.interface", None, r"ports\[0\].interface"),
        (f"{PORTS}.ports.0.pt", 3, "mixed"),
        ("metrics.network_stats.bytes_in", -1, "network_stats.bytes_in"),
        (f"{ESTABLISHED}.connections.0.remote_addr", MISSING, "remote_addr"),
        (f"{ESTABLISHED}.connections.0.remote_addr", "::1:80", "remote_addr"),
        (f"{ESTABLISHED}.connections.0.remote_addr", "[::1%lo]:80", "remote_addr"),
        (f"{ESTABLISHED}.connections.0.remote_addr", "[10.0.0.1]:80", "remote_addr"),
        (f"{ESTABLISHED}.connections.0.remote_addr", "10.0.0.256:80", "remote_addr"),
        (f"{ESTABLISHED}.connections.0.remote_addr", "10.0.0.1:0", "remote_addr"),
        (f"{ESTABLISHED}.connections.0.remote_addr", "10.0.0.1:65536", "remote_addr"),
        (f"{ESTABLISHED}.connections.0.remote_addr", "10.0.0.1", "remote_addr"),
        (f"{ESTABLISHED}.connections.0.remote_addr", 80, "remote_addr"),
        ("custom_metrics", [], "custom_metrics"),
        ("custom_metrics.n", {"number": 1}, "custom_metrics.n: .*exactly one object"),
        ("custom_metrics.n", [], "custom_metrics.n: .*exactly one object"),
        ("custom_metrics.n", [{"number": 1}, {"number": 1}], "custom_metrics.n: .*exactly one object"),
        ("custom_metrics.n", [{"number": 1, "number_list": [1]}], r"custom_metrics.n\[0\]: exp.*2 keys"),
        ("custom_metrics.n", [{"num": 1}], r"custom_metrics.n\[0\]: .*'num'"),
        ("custom_metrics.n.0.number", True, "number"),
        ("custom_metrics.n.0.number", "1", "number"),
        ("custom_metrics.n.0.number", float("nan"), "finite"),
        ("custom_metrics.n.0.number", 10**400, "finite"),
        ("custom_metrics.n.0.number", 1234567890123456, "15 significant"),
        ("custom_metrics.n.0.number", 0.1234567890123456, "15 significant"),
        ("custom_metrics.l.0.number_list", 1, "number_list"),
        ("custom_metrics.l.0.number_list", [], "at least one"),
        ("custom_metrics.l.0.number_list", [1, "2"], r"number_list\[1\]"),
        ("custom_metrics.s.0.string_list", ["One Fish"], r"string_list\[0\]"),
        ("custom_metrics.s.0.string_list", ["a\n"], r"string_list\[0\]"),
        ("custom_metrics.s.0.string_list", [""], r"string_list\[0\]"),
        ("custom_metrics.i.0.ip_list", ["10.0.0"], r"ip_list\[0\]"),
        ("custom_metrics.i.0.ip_list", [167772161], r"ip_list\[0\]"),
        ("custom_metrics.aws:mine", [{"number": 1}], "aws:mine"),
        ("custom_metrics.a b", [{"number": 1}], "a b"),
        ("custom_metrics." + "a" * 129, [{"number": 1}], "custom_metrics: 'aaa"),
    ],
)
def test_a_broken_rule_is_refused_by_its_path(path: str, value: object, where: str) -> None:
    with pytest.raises(ReportInvalid, match=where):
        validate(changed(path, value))


@pytest.mark.parametrize("number", [10**15, 10**300, 123456789012345, -0.1, 1e-300, 0])
def test_fifteen_significant_digits_are_enough(number: float) -> None:
    assert validate(changed("custom_metrics.n.0.number", number))["custom_metrics"]["n"] == [{"number": number}]


def test_short_names_are_understood_and_come_back_long() -> None:
    short: dict[str, Any] = {"hed": {"rid": 1, "v": "1.0"}, "met": {"tp": {"pts": [{"pt": 22, "if": "lo"}], "t": 1}}}
    assert validate(short) == {
        "header": {"report_id": 1, "version": "1.0"},
        "metrics": {"listening_tcp_ports": {"ports": [{"port": 22, "interface": "lo"}], "total": 1}},
    }
    short["met"]["tp"]["ports"] = []
    with pytest.raises(ReportInvalid, match="mixed"):
        validate(short)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "not JSON"),
        (b"[]", "found a list of 0"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"header":{"report_id":1,"report_id":2,"version":"1.0"},"metrics":{}}', "twice"),
        (b'{"header":{"report_id":1,"version":"1.0"},"custom_metrics":{"n":[{"number":NaN}]}}', "NaN"),
        (b'{"header":{"report_id":' + b"9" * 5000 + b',"version":"1.0"},"metrics":{}}', "not JSON"),
        (b'{"header":{"report_id":1,"version":"1.0"},"metrics":{}}' + b" " * 131_072, "131072 are allowed"),
    ],
)
def test_json_that_is_no_report_is_refused(payload: bytes, why: str) -> None:
    with pytest.raises(ReportInvalid, match=why):
        parse(payload, "json")


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "not CBOR"),
        (cbor2.dumps(GOOD)[:-1], "not CBOR"),
        (cbor2.dumps(GOOD) + b"\x00", "1 bytes after"),
        (cbor2.dumps({1: 2}), "unknown key 1"),
        (cbor2.dumps(changed("header.report_id", 2**20_000)), "header.report_id"),
        (cbor2.dumps(changed("custom_metrics.n.0.number", [2**20_000])), "number"),
    ],
)
def test_cbor_that_is_no_report_is_refused(payload: bytes, why: str) -> None:
    with pytest.raises(ReportInvalid, match=why):
        parse(payload, "cbor")


tree = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["header", "metrics", "n", "", "hed"]), inner),
)


@settings(deadline=None)
@given(st.binary() | tree.map(cbor2.dumps))
def test_no_bytes_raise_anything_but_a_refusal(payload: bytes) -> None:
    with pytest.raises(ReportInvalid):
        parse(payload, "json")
    with pytest.raises(ReportInvalid):
        parse(payload, "cbor")


@settings(deadline=None)
@given(st.sampled_from(["header", "metrics", "custom_metrics", "custom_metrics.n", f"{PORTS}.ports.0"]), tree)
def test_a_wrong_part_never_raises_anything_but_a_refusal(path: str, value: object) -> None:
    try:
        seen = validate(changed(path, value))
    except ReportInvalid:
        return
    assert validate(seen) == seen

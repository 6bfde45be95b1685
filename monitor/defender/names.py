"""Long and short keys of a Defender v1.0 report, and nothing else.

Source: AWS IoT Developer Guide, "Device-side metrics". The value keys of custom metrics (number, number_list,
string_list, ip_list) have no short form, and the names of custom metrics are never translated.
"""

from __future__ import annotations

from typing import Final

SHORT: Final[dict[str, str]] = {
    "header": "hed",
    "report_id": "rid",
    "version": "v",
    "metrics": "met",
    "custom_metrics": "cmet",
    "tcp_connections": "tc",
    "established_connections": "ec",
    "connections": "cs",
    "remote_addr": "rad",
    "local_port": "lp",
    "local_interface": "li",
    "total": "t",
    "listening_tcp_ports": "tp",
    "listening_udp_ports": "up",
    "ports": "pts",
    "port": "pt",
    "interface": "if",
    "network_stats": "ns",
    "bytes_in": "bi",
    "bytes_out": "bo",
    "packets_in": "pi",
    "packets_out": "po",
}
"""Short key of each long key; one to one, so the table reads both ways."""

LONG: Final[dict[str, str]] = {short: long for long, short in SHORT.items()}

VALUE_KEYS: Final[dict[str, str]] = {
    "number": "number",
    "number-list": "number_list",
    "string-list": "string_list",
    "ip-address-list": "ip_list",
}
"""Key of a custom metric's value, by the metric's type in the API."""

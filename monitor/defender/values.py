"""From a validated report to values by the name of their metric, as a security profile names them.

Owns which field of a report is which `aws:` metric (the developer guide gives fields and metrics on two pages; they
are joined by their names). Refuses to know what the values are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from monitor.defender.names import VALUE_KEYS

if TYPE_CHECKING:
    from monitor.defender.report import Document

_STATS: Final = ("bytes_out", "bytes_in", "packets_out", "packets_in")
_MAX_BITS: Final = 63  # beyond, an integer fits neither JSON libraries nor counters


def metric_values(document: Document) -> dict[str, float | tuple[float | str, ...]]:
    """Every metric of a report with long names, as `monitor.defender.validate` returns it; custom ones last.

    What the report leaves out is left out here. Lists keep their order and lose what is in them twice.
    """
    found: dict[str, float | tuple[float | str, ...]] = {}
    metrics = document.get("metrics", {})
    stats = metrics.get("network_stats", {})
    found |= {f"aws:all-{field.replace('_', '-')}": stats[field] for field in _STATS if field in stats}
    for protocol in ("tcp", "udp"):
        listening = metrics.get(f"listening_{protocol}_ports", {})
        if "total" in listening:
            found[f"aws:num-listening-{protocol}-ports"] = listening["total"]
        if "ports" in listening:
            ports = (entry["port"] for entry in listening["ports"])
            found[f"aws:listening-{protocol}-ports"] = tuple(dict.fromkeys(ports))
    established = metrics.get("tcp_connections", {}).get("established_connections", {})
    if "total" in established:
        found["aws:num-established-tcp-connections"] = established["total"]
    if "connections" in established:
        remotes = (_host(entry["remote_addr"]) for entry in established["connections"])
        found["aws:destination-ip-addresses"] = tuple(dict.fromkeys(remotes))
    for name, wrapped in document.get("custom_metrics", {}).items():
        found[name] = _custom(wrapped[0])
    return found


def _custom(wrapped: dict[str, Any]) -> float | tuple[float | str, ...]:
    if VALUE_KEYS["number"] in wrapped:
        return _number(wrapped[VALUE_KEYS["number"]])
    ((kind, members),) = wrapped.items()
    return tuple(dict.fromkeys(map(_number, members) if kind == VALUE_KEYS["number-list"] else members))


def _number(value: float) -> float:
    return float(value) if isinstance(value, int) and value.bit_length() > _MAX_BITS else value


def _host(remote_addr: str) -> str:
    """The address of `ip:port` or `[ip]:port`."""
    return remote_addr.rpartition(":")[0].strip("[]")

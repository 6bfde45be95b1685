"""Draws what the running daemon answers: the tree of kin and the table of counters; asks nobody, opens nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from monitor.sinks.text import columns, pad, safe, styled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Process = dict[str, Any]

MAX_LEVELS: Final = 40
"""Levels that are drawn; deeper ones stay at this indentation, for a chain of thousands must not fill the screen."""
NETWORK_COLUMNS: Final = (
    *("bytes_in", "bytes_out", "wire_bytes_in", "wire_bytes_out", "packets_in", "packets_out"),
    *("tcp_segments_in", "tcp_segments_out"),
    *("connections_out", "connections_in", "connections_failed", "attempts", "open", "listening", "remotes"),
    *("listening_ports", "destinations"),
)
"""Columns of a table of their own; lists stand last, for they are long."""
FIRST_COLUMNS: Final = ("roots", "alive", "peak", "spawned", "adopted", "execs", "exits")


def render_tree(processes: Sequence[Process], *, colour: bool = False) -> str:
    """Draw live kin, one tree per watch, as lines that each end in a newline.

    `processes`: as `kw_engine_tree` in engine.h writes them. A process whose parent has ended hangs from its root, with
    a note; one whose root has ended too stands by itself.
    """
    if not processes:
        return "nothing that is watched is running\n"
    watches = dict.fromkeys(entry["watch"] for process in processes for entry in process.get("watches", ()))
    return "\n".join("".join(_watch_lines(watch, processes, colour=colour)) for watch in watches)


def _watch_lines(watch: str, processes: Sequence[Process], *, colour: bool) -> Iterable[str]:
    kin: dict[str, tuple[Process, Mapping[str, Any]]] = {
        process["process_id"]: (process, entry)
        for process in processes
        for entry in process.get("watches", ())
        if entry["watch"] == watch
    }
    children: dict[str | None, list[tuple[str, str]]] = {}
    roots = 0
    for process_id, (process, entry) in kin.items():
        above, note = _place(process, entry, kin)
        roots += bool(entry.get("root"))
        children.setdefault(above, []).append((process_id, note))
    yield f"{styled(safe(watch), 'bold', colour=colour)}: {_count(roots, 'root')}, {_descendants(len(kin) - roots)}\n"
    # A stack and not a recursion: a lineage may be deeper than Python's own stack.
    stack = [(process_id, note, "", "", 0) for process_id, note in reversed(children.get(None, []))]
    while stack:
        process_id, note, branch, below, level = stack.pop()
        yield f"{branch}{_label(kin[process_id][0], note, colour=colour)}\n"
        under = children.get(process_id, [])
        for index, (child, child_note) in reversed(list(enumerate(under))):
            last = index == len(under) - 1
            if level < MAX_LEVELS:
                drawn = (below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))
            else:
                drawn = (below + "┄─ ", below)
            stack.append((child, child_note, *drawn, level + 1))


def _place(process: Process, entry: Mapping[str, Any], kin: Mapping[str, object]) -> tuple[str | None, str]:
    """What a process hangs from in its watch's tree, and the note about it."""
    parent, root = process.get("parent_process_id"), entry.get("root_process_id")
    if entry.get("root"):
        return None, ""
    if parent in kin and parent != process["process_id"]:
        return parent, ""
    if root in kin and root != process["process_id"]:
        return root, "its parent ended"
    return None, "its root ended"


def _label(process: Process, note: str, *, colour: bool) -> str:
    parts = [
        styled(str(process.get("pid", "?")), "dim", colour=colour),
        safe(str(process.get("comm", "?"))),
        styled(safe(str(process.get("exe", ""))), "dim", colour=colour),
        styled(f"({note})", "yellow", colour=colour) if note else "",
    ]
    return " ".join(filter(None, parts))


def render_status(status: Mapping[str, Any], *, colour: bool = False) -> str:
    """Draw the answer to `status` as lines that each end in a newline. Keys it does not know are shown as they are."""
    watches: Sequence[Mapping[str, Any]] = status.get("watches", ())
    lost: Mapping[str, int] = {stage: count for stage, count in status.get("lost", {}).items() if count}
    reason = status.get("reason")
    facts = [
        ("capture", f"{status.get('capture', '?')}" + (f" ({reason})" if reason else "")),
        ("since", str(status.get("since", "?"))),
        ("lost", ", ".join(f"{count} {stage}" for stage, count in lost.items()) or "nothing"),
    ]
    drawn = {"capture", "reason", "since", "lost", "watches", "lower_bounds", "lower_bound_metrics", "unknown"}
    facts += [(key, _plain(value)) for key, value in status.items() if key not in drawn | {"publisher", "detect"}]
    facts += _detect_facts(status["detect"]) if "detect" in status else []
    facts += _publisher_facts(status["publisher"]) if "publisher" in status else []
    width = max(columns(safe(name)) for name, _ in facts)
    lines = []
    for name, text in facts:
        style = "yellow" if name == "lost" and lost else ""
        title = styled(pad(safe(name), width), "dim", colour=colour)
        lines.append(f"{title}  {styled(safe(text), style, colour=colour)}\n")
    if watches:
        present = dict.fromkeys(key for watch in watches for key in watch if key != "name")
        keys: list[str] = [key for key in FIRST_COLUMNS if key in present]
        keys += [key for key in present if key not in FIRST_COLUMNS + NETWORK_COLUMNS]
        lines += ["\n", *_counter_lines(status, watches, keys, colour=colour)]
        keys = [key for key in NETWORK_COLUMNS if key in present]
        lines += ["\n", *_counter_lines(status, watches, keys, colour=colour)] if keys else []
    return "".join(lines)


def _publisher_facts(publisher: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A line each for the connection, reports, alarms, events and the spool. What is zero goes without saying."""
    where = f"{publisher.get('thing', '?')} at {publisher.get('endpoint', '?')}"
    trouble = publisher.get("trouble")
    connected = "connected" if publisher.get("connected") else f"not connected{f': {trouble}' if trouble else ''}"
    next_s = publisher.get("next_report_in_s")
    reports = _nonzero(publisher.get("reports", {})) or "none yet"
    spool = dict(publisher.get("spool", {}))
    waiting = [f"{spool.get(kind)} {kind} waiting" for kind in ("alarms", "events") if spool.get(kind)]
    dropped = [f"{count} {kind} lines dropped" for kind, count in (spool.get("dropped") or {}).items()]
    return [
        ("publisher", f"{where}, {connected}"),
        ("reports", reports + (f"; the next in {next_s} s" if next_s else "")),
        ("alarms", _nonzero(publisher.get("alarms", {})) or "none yet"),
        *([("events", events)] if (events := _nonzero(publisher.get("events", {}))) else []),
        ("spool", ", ".join(waiting + dropped) or "empty"),
    ]


def _detect_facts(detect: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A line for the profile, one for each behavior in alarm or not judged."""
    rows: Sequence[Mapping[str, Any]] = detect.get("behaviors", ())
    by_clock = [f"{count} {clock}" for clock in ("instant", "window", "none") if (count := _of(rows, clock))]
    name = detect.get("profile") or "without a name"
    facts = [("detect", f"profile {name}, {', '.join(by_clock)}; {_count(detect.get('windows', 0), 'window')} judged")]
    for row in rows:
        why = row.get("unfit") or (row.get("why") if row.get("clock") == "none" else "")
        if row.get("in_alarm"):
            facts.append(("in alarm", str(row.get("name"))))
        if why:
            facts.append(("not judged", f"{row.get('name')}: {why}"))
    return facts


def _of(rows: Sequence[Mapping[str, Any]], clock: str) -> int:
    return sum(row.get("clock") == clock for row in rows)


def _nonzero(counts: Mapping[str, Any]) -> str:
    parts = [(name, _plain(value) if isinstance(value, dict) else value) for name, value in counts.items() if value]
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in parts)


def _counter_lines(
    status: Mapping[str, Any], watches: Sequence[Mapping[str, Any]], keys: Sequence[str], *, colour: bool
) -> Iterable[str]:
    bounds, unknown = status.get("lower_bounds", ()), status.get("unknown", ())

    def cell(watch: Mapping[str, Any], key: str) -> str:
        if key not in watch or key in unknown:
            return "-"
        return safe(("≥" if key in bounds else "") + _plain(watch[key]))

    rows = [[safe(str(watch.get("name", "?"))), *(cell(watch, key) for key in keys)] for watch in watches]
    heads = ["WATCH", *(key.upper().replace("_", " ") for key in keys)]
    widths = [max(columns(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        first, *others = zip(row, widths, strict=True)
        text = "  ".join([pad(*first), *(" " * (width - columns(name)) + name for name, width in others)])
        yield (styled(text, "dim", colour=colour) if row is heads else text).rstrip() + "\n"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _descendants(number: int) -> str:
    return "no descendant" if number == 0 else _count(number, "descendant")

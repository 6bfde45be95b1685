"""What `kinwatch tree` and `kinwatch status` draw."""

from __future__ import annotations

import unicodedata
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from monitor.sinks.text import UNSAFE
from monitor.tree import render_status, render_tree


def kin(pid: int, comm: str, parent: int | None = None, *, root: int | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - further keys
    """A process as the engine tells it; root None: it is one."""
    entry: dict[str, Any] = {"watch": "myapp"}
    entry |= {"root": True} if root is None else {"depth": 1, "root_process_id": f"{root}-1"}
    process: dict[str, Any] = {"pid": pid, "process_id": f"{pid}-1", "comm": comm, "watches": [entry], **more}
    if parent is not None:
        process["parent_process_id"] = f"{parent}-1"
    return process


def test_children_hang_from_their_parents() -> None:
    drawn = render_tree(
        [
            kin(1, "myapp", exe="/opt/myapp"),
            kin(2, "sh", 1, root=1),
            kin(3, "cat", 2, root=1, exe="/usr/bin/cat"),
            kin(4, "sleep", 1, root=1),
            kin(5, "myapp"),
        ]
    )
    assert drawn.splitlines() == [
        "myapp: 2 roots, 3 descendants",
        "1 myapp /opt/myapp",
        "├─ 2 sh",
        "│  └─ 3 cat /usr/bin/cat",
        "└─ 4 sleep",
        "5 myapp",
    ]


def test_an_orphan_hangs_from_its_root_and_one_without_root_stands_alone() -> None:
    drawn = render_tree([kin(1, "myapp"), kin(3, "cat", 2, root=1), kin(8, "left", 7, root=6)])
    assert drawn.splitlines() == [
        "myapp: 1 root, 2 descendants",
        "1 myapp",
        "└─ 3 cat (its parent ended)",
        "8 left (its root ended)",
    ]


def test_a_process_of_two_watches_is_in_both_trees() -> None:
    worker = kin(2, "nginx", 1, root=1)
    worker["watches"].append({"watch": "web", "root": True})
    assert render_tree([kin(1, "myapp"), worker]) == (
        "myapp: 1 root, 1 descendant\n1 myapp\n└─ 2 nginx\n\nweb: 1 root, no descendant\n2 nginx\n"
    )


def test_nothing_running_is_said() -> None:
    assert render_tree([]) == "nothing that is watched is running\n"


def test_a_chain_of_thousands_is_drawn_within_bounds() -> None:
    chain = [kin(1, "myapp"), *(kin(pid, "sh", pid - 1, root=1) for pid in range(2, 20_001))]
    lines = render_tree(chain).splitlines()
    assert len(lines) == 20_001
    assert max(map(len, lines)) < 160
    assert lines[-1].endswith("20000 sh")


@given(st.integers(1, 30), st.data())
def test_every_process_is_drawn_once_and_below_its_parent(count: int, data: st.DataObject) -> None:
    processes = [kin(1, "p1")]
    parents = {}
    for pid in range(2, count + 1):
        parents[pid] = data.draw(st.integers(1, pid - 1))
        processes.append(kin(pid, f"p{pid}", parents[pid], root=1))
    lines = render_tree(processes).splitlines()[1:]
    column = {int(line.rpartition(" p")[2]): line.index(next(c for c in line if c.isdigit())) for line in lines}
    row = {int(line.rpartition(" p")[2]): number for number, line in enumerate(lines)}
    assert sorted(row) == list(range(1, count + 1))
    for pid, parent in parents.items():
        assert column[pid] == column[parent] + 3
        between = [other for other in row if row[parent] < row[other] < row[pid]]
        assert all(column[other] > column[parent] for other in between)


STATUS = {
    "capture": "core",
    "reason": "BTF and a ring buffer are there",
    "since": "2026-11-25T03:14:00.000000000Z",
    "watches": [
        {"name": "myapp", "roots": 1, "alive": 0, "peak": 3, "spawned": 12, "execs": 4, "exits": 12},
        {"name": "web", "roots": 0, "alive": 0, "peak": 30_000, "spawned": 5, "execs": 4, "exits": 5, "extra": 1},
    ],
    "lost": {"ring_full": 0, "sink_full": 3},
}


def test_status_is_a_table_with_a_head() -> None:
    assert render_status(STATUS).splitlines() == [
        "capture  core (BTF and a ring buffer are there)",
        "since    2026-11-25T03:14:00.000000000Z",
        "lost     3 sink_full",
        "",
        "WATCH  ROOTS  ALIVE   PEAK  SPAWNED  EXECS  EXITS  EXTRA",
        "myapp      1      0      3       12      4     12      -",
        "web        0      0  30000        5      4      5      1",
    ]


def test_the_network_has_a_table_of_its_own() -> None:
    counters = {
        "name": "myapp",
        "roots": 1,
        "bytes_in": 12,
        "open": 2,
        "remotes": 3,
        "destinations": ["[::1]:80", "10.0.0.1:443"],
    }
    other = {"name": "web", "roots": 0, "bytes_in": 0, "open": 0, "remotes": 0, "destinations": []}
    drawn = render_status({"capture": "core", "watches": [counters, other], "lower_bounds": ["bytes_in"]})
    assert drawn.split("\n\n")[1:] == [
        "WATCH  ROOTS\nmyapp      1\nweb        0",
        (
            "WATCH  BYTES IN  OPEN  REMOTES            DESTINATIONS\n"
            "myapp       ≥12     2        3  [::1]:80, 10.0.0.1:443\n"
            "web          ≥0     0        0                       -\n"
        ),
    ]


def test_what_is_known_only_as_a_lower_bound_or_not_at_all_is_marked() -> None:
    drawn = render_status(STATUS | {"lower_bounds": ["spawned"], "unknown": ["execs"], "lost": {}})
    assert "lost     nothing" in drawn
    assert drawn.splitlines()[-1].split() == ["web", "0", "0", "30000", "≥5", "-", "5", "1"]


def test_other_facts_are_shown_as_they_are() -> None:
    drawn = render_status({"capture": "poll", "pid": 12, "sinks": {"dropped": 1}, "pinned": True, "notes": []})
    assert drawn.splitlines()[3:] == ["pid      12", "sinks    dropped 1", "pinned   yes", "notes    -"]


PUBLISHER = {
    "endpoint": "localhost:8883",
    "thing": "mything1",
    "connected": True,
    "connections": 1,
    "next_report_in_s": 42,
    "reports": {"sent": 3, "accepted": 2, "rejected": {"Throttled": 1}, "unanswered": 0},
    "alarms": {"delivered": 7, "refused": 0, "undelivered": 1, "taken": 9, "merged": 1},
    "events": {"delivered": 0, "refused": 0, "undelivered": 0},
    "spool": {"bytes": 512, "alarms": 1, "events": 0, "oldest_s": 1.0, "dropped": {"events": 3}},
}


def test_status_says_where_is_published_and_what_became_of_it() -> None:
    drawn = render_status({"capture": "core", "publisher": PUBLISHER}).splitlines()
    assert drawn[-4:] == [
        "publisher  mything1 at localhost:8883, connected",
        "reports    3 sent, 2 accepted, Throttled 1 rejected; the next in 42 s",
        "alarms     7 delivered, 1 undelivered, 9 taken, 1 merged",
        "spool      1 alarms waiting, 3 events lines dropped",
    ]


def test_status_says_what_is_judged_and_what_is_not() -> None:
    behaviors = [
        {"name": "a", "clock": "instant", "why": "as expect"},
        {"name": "b", "clock": "window", "why": "of a window", "in_alarm": True},
        {"name": "c", "clock": "window", "why": "of a window", "in_alarm": False, "unfit": "it is a list"},
        {"name": "d", "clock": "none", "why": "of the cloud"},
    ]
    drawn = render_status({"capture": "core", "detect": {"profile": "p", "windows": 1, "behaviors": behaviors}})
    assert drawn.splitlines()[-4:] == [
        "detect      profile p, 1 instant, 2 window, 1 none; 1 window judged",
        "in alarm    b",
        "not judged  c: it is a list",
        "not judged  d: of the cloud",
    ]


def test_status_says_why_nothing_is_published() -> None:
    away = PUBLISHER | {"connected": False, "trouble": "nobody listens", "reports": {}, "spool": {}}
    drawn = render_status({"capture": "core", "publisher": away}).splitlines()
    assert drawn[-4] == "publisher  mything1 at localhost:8883, not connected: nobody listens"
    assert drawn[-3] == "reports    none yet; the next in 42 s"
    assert drawn[-1] == "spool      empty"


@given(st.text(max_size=20))
def test_nothing_that_could_act_on_a_terminal_gets_through(text: str) -> None:
    drawn = render_tree([kin(1, text, exe=text)]) + render_status(
        {"capture": text, "reason": text, "watches": [{"name": text}]}
    )
    assert not any(unicodedata.category(char) in UNSAFE for char in drawn.replace("\n", ""))

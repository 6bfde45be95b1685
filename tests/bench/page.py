"""The words of the bench's page: from what was measured to rows beside goals. Owns the goals; measures nothing."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from tests.bench.decisions import EXEC, FORK, RULES
from tests.bench.hooks import HOOKS
from tests.bench.table import Row, Spread, at_most, markdown, percentile, ratios, verdict
from tests.bench.watchers import POLL_MS
from tests.bench.windows import BEHAVIORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.daemon import Idle
    from tests.bench.decisions import Decisions
    from tests.bench.device import Looks
    from tests.bench.hooks import Cost
    from tests.bench.network import Cycles
    from tests.bench.publishing import Drain
    from tests.bench.storms import Result
    from tests.bench.windows import Ends

KIN: Final = "of kin"
OTHERS: Final = "of others, a root lives"
NO_ROOT: Final = "of others, no root lives"

# The goals.
SLOWER_PERCENT: Final = {KIN: 5.0, OTHERS: 1.0, NO_ROOT: 1.0}
HOOKS_NS: Final = {KIN: 800.0, OTHERS: 160.0, NO_ROOT: 20.0}
ENGINE_NS: Final = 250.0
READY_MS: Final = 300.0
MEMORY_MB: Final = 40.0
FIRST_MS: Final = 2.0
DECISION_NS: Final = 300.0
ALARM_MS: Final = {50: 5.0, 99: 15.0}
CONNECTED_MB: Final = 60.0
STREAM_KIN_PERCENT: Final = 3.0
STREAM_PERCENT: Final = 0.5
CYCLE_NS: Final = 1500.0
CYCLE_PACKETS_NS: Final = 4000.0
DRAIN_PER_S: Final = 1000.0
LOOK_TIMES: Final = 20.0
WINDOW_MS: Final = 20.0
THROTTLE_PER_S: Final = 100.0
"""Publishes a second that AWS IoT Core takes of a connection, and the SDK keeps to."""


def seen_row(result: Result) -> Row:
    """Whether everything was seen, in every round."""
    what, goal = "children of the storm that were seen", "all, 0 lost"
    if not result.saw:
        return Row(what, not_measured(result), goal)
    counted, told = min(result.seen("spawned")), min([*result.seen("forks"), *result.seen("exits")])
    lost = max(result.seen("lost"))
    text = f"{counted:,} of {result.children:,} counted, {told:,} with both lines, {lost} lost"
    text += f", in each of {len(result.saw)} rounds"
    whole = set(result.seen("spawned")) == {told} == {result.children} and lost == 0
    return Row(what, text, goal, verdict(good=whole))


def slower_row(name: str, result: Result) -> Row:
    """By the median of paired ratios of whole storms. No goal: the noise."""
    most = SLOWER_PERCENT.get(name)
    what = f"storm {name}, against no kinwatch" if most is not None else "the same with nobody watching: the noise"
    goal = "" if most is None else f"<= {most:g} %"
    if not result.elapsed:
        return Row(what, not_measured(result), goal)
    spread = Spread.of(ratios(result.elapsed))
    text = f"{spread.percent_more()} ({len(result.elapsed)} pairs)"
    return Row(what, text, goal, "" if most is None else spread.at_most(1 + most / 100))


def turns_row(pairs: Sequence[tuple[float, float]] | str, children: int) -> Row:
    """A storm of kin beside one of somebody else, both while kinwatch runs."""
    what, goal = f"storm {KIN}, against one of others, in turns", f"<= {SLOWER_PERCENT[KIN]:g} %"
    if isinstance(pairs, str):
        return Row(what, f"not measured: {pairs}", goal)
    spread = Spread.of(ratios(pairs))
    text = f"{spread.percent_more()} ({len(pairs)} pairs of {children:,})"
    return Row(what, text, goal, spread.at_most(1 + SLOWER_PERCENT[KIN] / 100))


def daemon_row(result: Result) -> Row:
    """What the daemon itself needs for a storm of its kin."""
    what = "CPU of the daemon while its kin storm"
    if not result.saw:
        return Row(what, not_measured(result))
    share = Spread.of(result.watcher_cpu).median
    per_child_ns = share * statistics.median(watched for _, watched in result.elapsed) / result.children
    return Row(what, f"{100 * share:.0f} % of a core, {per_child_ns / 1000:.1f} us per child (two records, two lines)")


def hook_rows(costs: Mapping[str, Mapping[str, Cost] | str]) -> list[Row]:
    """Fork and exit together, net."""
    rows = []
    for name, most in HOOKS_NS.items():
        what, goal, cost = f"kernel, fork + exit {name}", (most, "ns"), costs[name]
        if isinstance(cost, str):
            rows.append(at_most(what, cost, goal))
            continue
        net = Spread.of([fork + end for fork, end in zip(cost["on_fork"].net, cost["on_exit"].net, strict=True)])
        raw = Spread.of([fork + end for fork, end in zip(cost["on_fork"].raw, cost["on_exit"].raw, strict=True)])
        text = f"{net.median:.0f} ns ± {net.margin:.0f} net, {raw.median:.0f} raw"
        rows.append(Row(what, text, f"<= {most:g} ns", net.at_most(most)))
    return rows


def hook_table(costs: Mapping[str, Mapping[str, Cost] | str]) -> str:
    """Each hook, net and raw."""
    rows = [
        [
            hook,
            *(
                "not measured"
                if isinstance(cost, str)
                else f"{statistics.median(cost[hook].net):.0f} net, {statistics.median(cost[hook].raw):.0f} raw"
                for cost in costs.values()
            ),
        ]
        for hook in HOOKS
    ]
    return markdown(("hook", *costs), rows)


def engine_row(engine_ns: float | str) -> Row:
    """The engine alone."""
    return at_most("engine, bytes to line, per record", engine_ns, (ENGINE_NS, "ns"))


def ready_row(starts_ms: Sequence[float] | str) -> Row:
    """From the command to the line that says it watches."""
    what, goal = "start until every hook is live", (READY_MS, "ms")
    if isinstance(starts_ms, str):
        return at_most(what, starts_ms, goal)
    more = f"median of {len(starts_ms)} starts, {min(starts_ms):.0f} to {max(starts_ms):.0f}"
    return at_most(what, statistics.median(starts_ms), goal, more=more)


def idle_rows(idle: Idle | str) -> list[Row]:
    """Wake-ups and memory of a daemon with nothing to do."""
    what, storming = "wake-ups per second, idle, a root lives", "wake-ups while another application storms"
    memory, most = "memory, idle", (MEMORY_MB, "MB")
    if isinstance(idle, str):
        return [*(Row(name, f"not measured: {idle}", "0") for name in (what, storming)), at_most(memory, idle, most)]
    awake = (
        f"{idle.polls / idle.seconds:g} of the capture thread, {idle.switches / idle.seconds:g} of all threads "
        f"({idle.seconds:g} s, in which others forked {idle.others} times)"
    )
    stormed = f"{idle.storm_polls} for {idle.storm_children:,} children"
    return [
        Row(what, awake, "0", verdict(good=idle.polls == idle.woken == idle.switches == 0)),
        Row(storming, stormed, "0", verdict(good=idle.storm_polls == 0)),
        at_most(memory, idle.rss_kb / 1024, most, digits=1, more="VmRSS"),
    ]


def peak_row(peak_kb: float | str) -> Row:
    """Memory in the worst moment."""
    measured = peak_kb if isinstance(peak_kb, str) else peak_kb / 1024
    return at_most("memory at most, while its kin storm", measured, (MEMORY_MB, "MB"), digits=1, more="VmHWM")


def decision_rows(decisions: Decisions | str) -> list[Row]:
    """What rules cost the hook of a fork and that of an exec."""
    rows = []
    for hook, happened in ((FORK, "a fork"), (EXEC, "an exec")):
        for name in RULES:
            what, goal = f"kernel, deciding on {happened} of an enforced watch, {name}", (DECISION_NS, "ns")
            if isinstance(decisions, str):
                rows.append(at_most(what, decisions, goal))
                continue
            more, none = Spread.of(decisions.more[name][hook]), Spread.of(decisions.none[hook])
            text = f"{more.median:.0f} ns ± {more.margin:.0f} more than {none.median:.0f} without rules"
            rows.append(Row(what, text, f"<= {DECISION_NS:g} ns", more.at_most(DECISION_NS)))
    return rows


def first_row(first_ns: Sequence[int] | str, *, alarm: bool) -> Row:
    """From a fork to its line."""
    sought = "alarm line" if alarm else "line"
    what, goal = f"first event after quiet, fork() to {sought}, p99", (FIRST_MS, "ms")
    if isinstance(first_ns, str):
        return at_most(what, first_ns, goal)
    more = f"p50 {percentile(first_ns, 50) / 1e6:.2f} ms, longest {max(first_ns) / 1e6:.2f} ms, {len(first_ns)} samples"
    return at_most(what, percentile(first_ns, 99) / 1e6, goal, digits=2, more=more)


def alarm_rows(alarm_ns: Sequence[int] | str) -> list[Row]:
    """From a fork to its alarm at a subscriber."""
    rows = []
    for percent, most in ALARM_MS.items():
        what, goal = f"fork() to the alarm at an MQTT subscriber on loopback, p{percent}", (most, "ms")
        if isinstance(alarm_ns, str):
            rows.append(at_most(what, alarm_ns, goal))
        else:
            more = f"{len(alarm_ns)} samples, longest {max(alarm_ns) / 1e6:.1f} ms"
            rows.append(at_most(what, percentile(alarm_ns, percent) / 1e6, goal, digits=2, more=more))
    return rows


def connected_row(ours_kb: int | str, sample_kb: int | str) -> Row:
    """Memory with MQTT, beside AWS's sample agent."""
    what, goal = "memory, connected, after a report", f"<= {CONNECTED_MB:g} MB and <= the sample agent's"
    if isinstance(ours_kb, str) or isinstance(sample_kb, str):
        failed = ours_kb if isinstance(ours_kb, str) else sample_kb
        return Row(what, f"not measured: {failed}", goal)
    text = f"{ours_kb / 1024:.1f} MB, the sample agent {sample_kb / 1024:.1f} MB (VmRSS)"
    return Row(what, text, goal, verdict(good=ours_kb <= min(CONNECTED_MB * 1024, sample_kb)))


def drain_row(drained: Drain | str, *, throttle: bool) -> Row:
    """A backlog of alarms that leaves the spool."""
    what = f"alarms drained from the spool, in order, throttle {'on' if throttle else 'off'}"
    goal = f"at its {THROTTLE_PER_S:g}/s" if throttle else f">= {DRAIN_PER_S:g}/s"
    if isinstance(drained, str):
        return Row(what, f"not measured: {drained}", goal)
    text = f"{drained.messages:,} at {drained.per_s:,.0f}/s, {'in order' if drained.in_order else 'NOT in order'}"
    close = 0.9 * THROTTLE_PER_S <= drained.per_s <= 1.1 * THROTTLE_PER_S
    fast = close if throttle else drained.per_s >= DRAIN_PER_S
    return Row(what, text, goal, verdict(good=fast and drained.in_order))


def look_row(looks: Looks | str) -> Row:
    """One look at all sockets and what a report takes of it, beside psutil's look."""
    what, goal = "device-wide blocks against psutil.net_connections", f">= {LOOK_TIMES:g} times faster"
    if isinstance(looks, str):
        return Row(what, f"not measured: {looks}", goal)
    spread = Spread.of(ratios([(ours, theirs) for theirs, ours, _ in looks.rounds]))
    reading = Spread.of(ratios([(ours, theirs) for theirs, _, ours in looks.rounds])).median
    theirs, ours, _ = (statistics.median(column) / 1e6 for column in zip(*looks.rounds, strict=True))
    text = f"{spread.median:.1f} ± {spread.margin:.1f} times, {ours:.1f} ms against {theirs:.0f}"
    text += f" (the reading alone {reading:.1f} times; {looks.sockets:,} sockets, {looks.processes} processes)"
    unclear = abs(spread.median - LOOK_TIMES) < spread.margin
    return Row(what, text, goal, "unclear" if unclear else verdict(good=spread.median >= LOOK_TIMES))


def window_row(ends: Ends | str) -> Row:
    """The end of a window for a thousand behaviors."""
    what, goal = f"{BEHAVIORS:,} behaviors evaluated per window", (WINDOW_MS, "ms")
    if isinstance(ends, str):
        return at_most(what, ends, goal)
    quiet, cpu, kept = (statistics.median(column) / 1e6 for column in (ends.quiet, ends.cpu, ends.kept))
    more = f"{cpu:.1f} ms of CPU; median of {len(ends.quiet)} windows; state to disk {kept:.1f} ms"
    return at_most(what, quiet, goal, digits=1, more=f"{more}; {ends.loud / 1e6:.1f} ms with {ends.lines} alarms")


def stream_row(pairs: Sequence[tuple[float, float]] | str, *, kin: bool, packets: bool) -> Row:
    """How much a stream over loopback loses, by the median of paired ratios."""
    whose, most = ("the watched application", STREAM_KIN_PERCENT) if kin else ("others, a root lives", STREAM_PERCENT)
    what = f"stream over loopback of {whose}, time per byte{', with packet programs' if packets else ''}"
    goal = f"<= {most:g} %"
    if isinstance(pairs, str):
        return Row(what, f"not measured: {pairs}", goal)
    spread = Spread.of(ratios(pairs))
    return Row(what, f"{spread.percent_more()} ({len(pairs)} pairs)", goal, spread.at_most(1 + most / 100))


def cycle_row(cycles: Cycles | str, *, packets: bool) -> Row:
    """The kernel's time for a connection's life."""
    what = f"kernel, connect + accept + close of kin, {'with' if packets else 'without'} packet programs"
    most = (CYCLE_PACKETS_NS if packets else CYCLE_NS, "ns")
    if isinstance(cycles, str):
        return at_most(what, cycles, most)
    calls = sum(cycles.calls.values())
    return at_most(what, cycles.raw - cycles.empty * calls, most, more=f"net, {cycles.raw:.0f} raw, {calls:.1f} calls")


def peers(kinwatch: Result, psutil: Result, forkstat: Result) -> str:
    """One row per question, one column per watcher."""
    columns = {
        "kinwatch": (kinwatch, "spawned", "exits"),
        f"psutil every {POLL_MS} ms": (psutil, "children", ""),
        "forkstat": (forkstat, "children", "exits"),
    }
    rows = [["children seen"], ["exits seen"], ["the storm is slower by"], ["CPU of the watcher, of a core"]]
    for result, children, exits in columns.values():
        if not result.saw or not result.elapsed:
            cells = [not_measured(result)] * len(rows)
        else:
            cells = [
                between(result.seen(children), result.children),
                between(result.seen(exits), result.children) if exits else "cannot",
                Spread.of(ratios(result.elapsed)).percent_more(),
                f"{100 * Spread.of(result.watcher_cpu).median:.0f} %",
            ]
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    return markdown(("", *columns), rows)


def between(seen: Sequence[int], of: int) -> str:
    """The fewest and the most that a round saw."""
    low, high = min(seen), max(seen)
    return f"{low:,} of {of:,}" if low == high else f"{low:,} to {high:,} of {of:,}"


def not_measured(result: Result) -> str:
    """Why a condition has no result."""
    return f"not measured: {result.failures[-1] if result.failures else 'no round was run'}"

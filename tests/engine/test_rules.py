"""Rules on lineage: each is judged when a process is forked or executes, and clears when nobody breaks it any more."""

# ruff: noqa: ANN401 - the fields of a record have every type
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from monitor.engine import Engine, LineageRules, lines
from monitor.engine._native import lib
from monitor.engine.records import Credentials, clock_record, enforced_record, image_record
from monitor.errors import EngineRefused

if TYPE_CHECKING:
    from tests.engine.conftest import Process, Tools, World

MINUTE_NS = 60 * 10**9
SHELL, CAT, APP = (8 << 20 | 1, 11), (8 << 20 | 1, 22), (8 << 20 | 1, 33)
"""(device, inode) of files."""


class Family:
    """A root and its descendants in slot 0, each record ingested as it is made."""

    def __init__(self, engine: Engine, world: World, tools: type[Tools]) -> None:
        self.engine, self.world, self.tools = engine, world, tools
        self.root, record = world.start_root(0)
        self.feed(record)

    def feed(self, *records: bytes) -> list[lines.Line]:
        """Ingest and return all lines."""
        self.engine.ingest(b"".join(records))
        assert self.engine.losses()["bad_record"] == 0
        return self.tools.told(self.engine)

    def judged(self, *records: bytes) -> list[tuple[str, str, object]]:
        """Ingest and return alarms and clears: event, behavior, value."""
        told = self.feed(*records)
        return [
            (type(line).__name__.lower(), line.behavior, line.value)
            for line in told
            if isinstance(line, (lines.Alarm, lines.Clear))
        ]

    def fork(self, parent: Process | None = None) -> Process:
        """Make a child, without a look at what is said of it."""
        child, record = self.world.fork(parent or self.root)
        self.feed(record)
        return child

    def image(self, process: Process, path: bytes, file: tuple[int, int] = (0, 0), **fields: Any) -> bytes:
        """Record of an exec."""
        process.exe, process.comm = path, path.rpartition(b"/")[2][:15]
        full: dict[str, Any] = {
            "kind": lib.KW_EXEC,
            "time_ns": self.world.tick(),
            "process": process.id,
            "watches": process.watches,
            "roots": process.roots,
            "comm": process.comm,
            "parent": process.parent.id if process.parent else None,
            "lineage": process.outermost,
            "credentials": Credentials(1000, 100),
            "exe": path,
            "device": file[0],
            "inode": file[1],
            "argv": [path, b"-x"],
        }
        return image_record(**full | fields)


@pytest.fixture
def family(engine: Engine, world: World, tools: type[Tools]) -> Family:
    """A root in slot 0, nothing expected of it yet."""
    return Family(engine, world, tools)


def test_an_image_that_is_not_expected_is_an_alarm_with_all_that_caused_it(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=[CAT]))
    child = family.fork()
    _, alarm = family.feed(family.image(child, b"/bin/sh", SHELL))
    assert isinstance(alarm, lines.Alarm)
    assert (alarm.watch, alarm.behavior, alarm.metric) == ("one", "executables", "child_exes_one")
    assert (alarm.value, alarm.exe, alarm.argv) == (("/bin/sh",), "/bin/sh", ("/bin/sh", "-x"))
    assert alarm.criteria == lines.Criteria(
        comparison_operator="in-set", value=lines.CriteriaValue(strings=("/bin/cat",))
    )
    assert alarm.process_ids == (str(child.id),)
    assert [one.process_id for one in alarm.lineage or ()] == [str(family.root.id), str(child.id)]
    _, clear = family.feed(family.world.end(child))
    assert isinstance(clear, lines.Clear)
    assert (clear.value, clear.since, clear.criteria) == ((), alarm.time, alarm.criteria)


def test_files_are_what_is_expected_and_their_names_only_where_files_are_not_known(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=[CAT]))
    child = family.fork()
    assert family.judged(family.image(child, b"/opt/link-to-cat", CAT)) == []
    assert family.judged(family.image(child, b"/bin/cat", SHELL)) == [("alarm", "executables", ("/bin/cat",))]
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=None))
    assert family.judged() == [("clear", "executables", ())]
    assert family.judged(family.image(child, b"/opt/link-to-cat", CAT)) == [
        ("alarm", "executables", ("/opt/link-to-cat",))
    ]


@pytest.mark.parametrize("known", [True, False])
def test_the_kernels_word_counts_where_it_was_about_these_files(family: Family, *, known: bool) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=[CAT] if known else None))
    child = family.fork()
    replaced = family.image(child, b"/bin/cat", CAT, unexpected=1)
    assert family.judged(replaced) == ([("alarm", "executables", ("/bin/cat",))] if known else [])
    other = family.image(child, b"/bin/sh", SHELL, unexpected=0)
    expected = [("clear", "executables", ())] if known else [("alarm", "executables", ("/bin/sh",))]
    assert family.judged(other) == expected


def test_each_further_image_is_an_alarm_and_the_clear_comes_with_the_last(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=[], files=[]))
    one, two, three = family.fork(), family.fork(), family.fork()
    assert family.judged(family.image(one, b"/bin/a")) == [("alarm", "executables", ("/bin/a",))]
    assert family.judged(family.image(two, b"/bin/a")) == []
    assert family.judged(family.image(three, b"/bin/b")) == [("alarm", "executables", ("/bin/a", "/bin/b"))]
    assert family.judged(family.world.end(one), family.world.end(three)) == []
    assert family.judged(family.world.end(two)) == [("clear", "executables", ())]


def test_a_fork_executes_nothing_and_a_child_keeps_up_what_its_parent_broke(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=[], files=[]))
    shell = family.fork()
    assert family.judged() == []
    family.feed(family.image(shell, b"/bin/sh"))
    child, fork = family.world.fork(shell)
    assert family.judged(fork, family.world.end(shell)) == []
    assert family.judged(family.world.end(child)) == [("clear", "executables", ())]


def test_more_images_than_are_named_are_waited_for_all_the_same(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=[], files=[]))
    children = [family.fork() for _ in range(70)]
    told = [family.judged(family.image(child, b"/bin/%d" % n)) for n, child in enumerate(children)]
    assert [len(one) for one in told] == [1] * 64 + [0] * 6
    assert not any(family.judged(family.world.end(child)) for child in children[:-1])
    assert family.judged(family.world.end(children[-1])) == [("clear", "executables", ())]


def test_an_edge_is_from_the_image_before_to_the_one_executed(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(edges=["/opt/myapp -> /bin/sh", "/bin/sh -> /bin/cat"]))
    child = family.fork()
    assert family.judged(family.image(child, b"/bin/sh"), family.image(child, b"/bin/cat")) == []
    other = family.fork()
    alarm = ("alarm", "edges", ("/opt/myapp -> /bin/cat",))
    assert family.judged(family.image(other, b"/bin/cat")) == [alarm]
    family.engine.expect_lineage(0, LineageRules(edges=["/opt/myapp -> /bin/cat"]))
    assert family.judged() == [("clear", "edges", ())]
    assert family.judged(family.image(other, b'/bin/"q"')) == [("alarm", "edges", ('/bin/cat -> /bin/"q"',))]
    assert family.judged(family.world.end(other)) == [("clear", "edges", ())]


def test_an_edge_needs_both_ends(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(edges=[]))
    child = family.fork()
    assert family.judged(family.image(child, b"", exe=None)) == []
    assert family.judged(family.image(child, b"/bin/sh")) == []
    assert len(family.judged(family.image(child, b"/bin/cat"))) == 1


def test_depth_is_one_alarm_whoever_is_too_deep(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(depth=1))
    child = family.fork()
    grandchild, fork = family.world.fork(child)
    assert family.judged(fork) == [("alarm", "depth", 2)]
    deeper, fork = family.world.fork(grandchild)
    assert family.judged(fork, family.world.end(grandchild)) == []
    assert family.judged(family.world.end(deeper)) == [("clear", "depth", 1)]
    family.feed(family.world.fork(child)[1])
    family.engine.expect_lineage(0, LineageRules(depth=2))
    assert family.judged() == [("clear", "depth", 2)]


def test_users_are_judged_at_fork_exec_and_exit(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(uids=[1000, 33]))
    child = family.fork()
    assert family.judged() == []
    told = family.judged(family.image(child, b"/bin/su", credentials=Credentials(0, 0)))
    assert told == [("alarm", "uids", (0,))]
    assert family.judged(family.image(child, b"/bin/cat", credentials=Credentials(33, 33))) == [("clear", "uids", ())]
    family.engine.expect_lineage(0, LineageRules(uids=[33]))
    family.engine.take()
    assert family.judged(family.world.end(child)) == [("alarm", "uids", (1000,)), ("clear", "uids", ())]


@pytest.mark.parametrize(
    ("behavior", "flag"), [("memfd", lib.KW_MEMFD), ("deleted", lib.KW_DELETED), ("temporary", lib.KW_TEMPORARY)]
)
def test_an_image_that_must_not_be_is_an_alarm_until_another_one_runs(family: Family, behavior: str, flag: int) -> None:
    family.engine.expect_lineage(0, LineageRules(forbidden=flag))
    child = family.fork()
    record = family.image(child, b"/open/x", flags=flag)
    told = family.feed(record)
    exec_, alarm = told
    assert isinstance(exec_, lines.Exec)
    assert getattr(exec_, behavior) is True
    assert isinstance(alarm, lines.Alarm)
    assert (alarm.behavior, alarm.metric, alarm.value) == (behavior, f"{behavior}_one", ("/open/x",))
    assert alarm.criteria.value == lines.CriteriaValue(strings=())
    assert family.judged(family.image(child, b"/bin/cat")) == [("clear", behavior, ())]
    assert family.judged(family.image(child, b"/bin/cat", flags=7 << 7 & ~flag & ~lib.KW_TRUNCATED)) == []


def test_rules_are_about_descendants(family: Family) -> None:
    everything = LineageRules(
        executables=[],
        files=[],
        edges=[],
        depth=0,
        uids=[],
        forbidden=lib.KW_MEMFD | lib.KW_DELETED | lib.KW_TEMPORARY,
    )
    family.engine.expect_lineage(0, everything)
    flags = lib.KW_MEMFD | lib.KW_DELETED | lib.KW_TEMPORARY
    assert family.judged(family.image(family.root, b"/open/x", flags=flags)) == []
    child, fork = family.world.fork(family.root)
    assert {behavior for _, behavior, _ in family.judged(fork)} == {"depth", "uids"}
    told = family.judged(family.image(child, b"/open/y", flags=flags))
    assert {behavior for _, behavior, _ in told} == {"executables", "edges", "memfd", "deleted", "temporary"}


@pytest.mark.parametrize(
    ("root", "inside", "outside"),
    [
        ("/opt/myapp", b"/opt/myapp", b"/open/myapp"),
        ("myapp", b"/open/myapp", b"/opt/other"),
        ("an application of a long name", b"/opt/an application of a long name", b"/opt/an application"),
    ],
)
def test_a_root_that_executes_what_its_watch_does_not_mean_is_an_alarm(
    family: Family, root: str, inside: bytes, outside: bytes
) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=[CAT], root=root))
    assert family.judged(family.image(family.root, inside), family.image(family.root, b"/bin/cat", CAT)) == []
    assert family.judged(family.image(family.root, outside)) == [("alarm", "root_image", (outside.decode(),))]
    assert family.judged(family.image(family.root, inside)) == [("clear", "root_image", ())]


def test_a_script_of_the_right_name_is_what_a_watch_by_name_means(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(root="myapp"))
    assert family.judged(family.image(family.root, b"/usr/bin/python3", script=b"./myapp")) == []
    assert len(family.judged(family.image(family.root, b"/usr/bin/python3", script=b"./notmyapp"))) == 1


def test_forks_are_counted_over_a_minute_and_time_clears(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(forks_per_minute=3))
    for _ in range(3):
        family.feed(family.world.end(family.fork()))
    child, fork = family.world.fork(family.root)
    told = family.feed(fork)
    (alarm,) = [line for line in told if isinstance(line, lines.Alarm)]
    assert (alarm.behavior, alarm.metric, alarm.value) == ("forks_per_minute", "forks_per_minute_one", 4)
    assert family.judged(family.world.fork(family.root)[1], family.world.end(child)) == []
    assert family.engine.take().hurried
    later = family.world.now_ns + MINUTE_NS
    assert family.judged(clock_record(time_ns=later, wall_ns=0)) == [("clear", "forks_per_minute", 0)]
    assert not family.engine.take().hurried


@settings(deadline=None, max_examples=50)
@given(
    gaps=st.lists(st.integers(1, 200).map(lambda quarters: quarters * 250_000_000), min_size=1, max_size=40),
    limit=st.integers(0, 5),
)
def test_the_rate_is_that_of_a_minute(tools: type[Tools], gaps: list[int], limit: int) -> None:
    """Model: an alarm stands from the fork that is one too many within 60 s to the first that finds room again."""
    world = tools.World()
    with Engine(256) as engine:
        engine.watch(0, "one", None)
        engine.expect_lineage(0, LineageRules(forks_per_minute=limit))
        family = Family(engine, world, tools)
        forked: list[int] = []
        alarmed = False
        for gap in gaps:
            world.now_ns += gap
            child, record = world.fork(family.root)
            now = child.id.start_ns // 250_000_000
            forked = [one for one in forked if one > now - 240]
            expected = ["clear"] if alarmed and len(forked) <= limit else []
            alarmed = alarmed and not expected
            forked.append(now)
            if not alarmed and len(forked) > limit:
                expected.append("alarm")
                alarmed = True
            assert [event for event, _, _ in family.judged(record)] == expected


def test_withdrawn_rules_clear_and_changed_ones_are_judged_at_once(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=[], files=[], forbidden=lib.KW_TEMPORARY))
    child = family.fork()
    family.feed(family.image(child, b"/open/x", SHELL, temporary=True))
    family.engine.expect_lineage(0, LineageRules(executables=["/open/x"], files=[SHELL], forbidden=lib.KW_TEMPORARY))
    assert family.judged() == [("clear", "executables", ())]
    family.engine.expect_lineage(0, LineageRules())
    assert family.judged() == [("clear", "temporary", ())]
    family.engine.expect_lineage(0, LineageRules(executables=[], files=[], forbidden=lib.KW_TEMPORARY))
    assert family.judged() == [("alarm", "executables", ("/open/x",)), ("alarm", "temporary", ("/open/x",))]
    family.engine.unwatch(0)
    assert family.judged() == [("clear", "executables", ()), ("clear", "temporary", ())]


def test_who_was_running_is_judged_by_name_or_file_and_not_for_what_its_root_runs(family: Family) -> None:
    family.feed(family.image(family.root, b"/opt/myapp", APP))
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=[CAT]))
    told = []
    for exe, file in ((b"/opt/myapp", APP), (b"/bin/cat", SHELL), (b"/opt/cat", CAT), (b"/bin/sh", SHELL)):
        child, _ = family.world.adopt(family.root)
        cause = {"kind": lib.KW_ADOPT, "fresh": 1, "cause": lib.KW_CAUSE_RUNNING}
        told += family.judged(family.image(child, exe, file, **cause))
    assert told == [("alarm", "executables", ("/bin/sh",))]


def test_a_file_that_is_replaced_while_it_runs_stays_expected(family: Family) -> None:
    """An upgrade, then a reload: whoever runs the old file ran what was expected; and so after a sync."""
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=[CAT]))
    child = family.fork()
    adopted, _ = family.world.adopt(family.root)
    cause = {"kind": lib.KW_ADOPT, "fresh": 1, "cause": lib.KW_CAUSE_RUNNING}
    assert family.judged(family.image(adopted, b"/bin/cat", SHELL, **cause)) == []
    assert family.judged(family.image(child, b"/bin/cat", CAT, unexpected=0)) == []
    assert family.judged(family.world.rows()) == []
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=[APP]))
    assert family.judged() == []
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/dog"], files=[APP]))
    assert family.judged() == [("alarm", "executables", ("/bin/cat",))]


def test_a_sync_keeps_what_the_kernel_said_of_an_image(family: Family) -> None:
    """The same file with other content."""
    family.engine.expect_lineage(0, LineageRules(executables=["/bin/cat"], files=[CAT]))
    child = family.fork()
    assert len(family.judged(family.image(child, b"/bin/cat", CAT, unexpected=1))) == 1
    assert family.judged(family.world.rows()) == []
    assert family.judged(family.world.end(child)) == [("clear", "executables", ())]


def test_other_watches_are_not_judged(family: Family) -> None:
    family.engine.expect_lineage(1, LineageRules(executables=[], files=[], depth=0, uids=[]))
    child = family.fork()
    assert family.judged(family.image(child, b"/bin/sh")) == []


def test_the_exit_of_a_displaced_process_clears(family: Family) -> None:
    family.engine.expect_lineage(0, LineageRules(executables=[], files=[]))
    child = family.fork()
    family.feed(family.image(child, b"/bin/sh"))
    _, fork = family.world.fork(family.root, pid=child.id.pid)
    assert family.judged(fork) == [("clear", "executables", ())]


def test_a_full_table_alarms_and_does_not_wait(tools: type[Tools]) -> None:
    world = tools.World()
    with Engine(1) as engine:
        engine.watch(0, "one", None)
        engine.expect_lineage(0, LineageRules(depth=0))
        family = Family(engine, world, tools)
        _, fork = world.fork(family.root)
        told = family.judged(fork)
        assert [event for event, _, _ in told] in ([], ["alarm", "clear"])  # its depth may be unknown


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": -2},
        {"forks_per_minute": -2},
        {"depth": 1 << 32},
        {"executables": ["/a"] * 4097, "files": []},
        {"uids": [0] * 4097},
    ],
)
def test_impossible_rules_are_refused(engine: Engine, wrong: dict[str, Any]) -> None:
    with pytest.raises(EngineRefused, match="EINVAL"):
        engine.expect_lineage(0, LineageRules(**wrong))
    with pytest.raises(EngineRefused, match="ENOENT"):
        engine.expect_lineage(5, LineageRules())


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.tuples(st.sampled_from(("fork", "exec", "end")), st.integers(0, 9)), max_size=60))
def test_an_alarm_stands_exactly_while_somebody_runs_what_is_not_expected(
    tools: type[Tools], steps: list[tuple[str, int]]
) -> None:
    """Model: which live descendant executed, or was forked by one that executed, an image that is not expected."""
    world = tools.World()
    with Engine(256) as engine:
        engine.watch(0, "one", None)
        engine.expect_lineage(0, LineageRules(executables=["/bin/0", "/bin/1"], files=None))
        family = Family(engine, world, tools)
        breaking: dict[Any, bytes] = {}
        standing: set[bytes] = set()
        for what, number in steps:
            process = world.live[number % len(world.live)]
            if what == "fork":
                child, record = world.fork(process)
                if process.id in breaking:
                    breaking[child.id] = breaking[process.id]
            elif process is family.root:
                continue
            elif what == "exec":
                exe = b"/bin/%d" % number
                record = family.image(process, exe)
                breaking.pop(process.id, None)
                if number > 1:
                    breaking[process.id] = exe
            else:
                breaking.pop(process.id, None)
                record = world.end(process)
            told = family.judged(record)
            now = set(breaking.values())
            assert ("alarm" in {event for event, _, _ in told}) == bool(now - standing)
            assert ("clear" in {event for event, _, _ in told}) == (bool(standing) and not now)
            standing = now


def test_what_was_done_is_told_and_counted(family: Family) -> None:
    child = family.fork()
    family.feed(family.image(child, b"/bin/sh", SHELL))
    actions = {
        "kill": lib.KW_ACTION_KILL,
        "deny": lib.KW_ACTION_DENY,
        "would": lib.KW_ACTION_WOULD,
        "spared": lib.KW_ACTION_SPARED,
    }
    for word, action in actions.items():
        (line,) = family.feed(
            enforced_record(
                time_ns=family.world.tick(),
                process=child.id,
                slots=1,
                watches=3,
                reason=lib.KW_REASON_EXECUTABLE,
                action=action,
                comm=b"sh",
            )
        )
        assert isinstance(line, lines.Enforced)
        assert (line.watch, line.pid, line.process_id, line.comm) == ("one", child.id.pid, str(child.id), "sh")
        assert (line.action, line.reason, line.exe) == (word, "executables", "/bin/sh")
        assert line.dry_run == (True if word == "would" else UNSET)
    counters = family.engine.counters(0)
    assert (counters.enforced, counters.would_enforce) == (2, 2)
    assert family.engine.counters(1).enforced == 0


def test_every_reason_has_its_word(family: Family) -> None:
    said = []
    for reason in range(1, 10):
        (line,) = family.feed(
            enforced_record(time_ns=1, process=family.root.id, slots=1, reason=reason, action=lib.KW_ACTION_DELEGATE)
        )
        assert isinstance(line, lines.Enforced)
        assert (line.action, line.delegated) == ("kill", True)
        said.append(line.reason)
    assert said == [
        *("child_processes", "executables", "depth", "forks_per_minute", "uids"),
        *("memfd", "deleted", "temporary", "untracked"),
    ]
    assert family.engine.counters(0).enforced == 9


def test_the_breaker_is_an_alarm_until_enforcement_begins_anew(family: Family) -> None:
    family.engine.breaker(600)
    spared = enforced_record(
        time_ns=family.world.tick(),
        process=family.root.id,
        slots=1,
        reason=lib.KW_REASON_DEPTH,
        action=lib.KW_ACTION_SPARED,
    )
    _, alarm = family.feed(spared)
    assert isinstance(alarm, lines.Alarm)
    assert (alarm.behavior, alarm.metric, alarm.value) == ("enforcement", "kills_per_minute", 601)
    assert alarm.criteria == lines.Criteria(
        comparison_operator="less-than-equals", value=lines.CriteriaValue(number=600)
    )
    assert alarm.watch is UNSET
    assert len(family.feed(spared)) == 1
    family.engine.breaker(10)
    assert family.judged() == [("clear", "enforcement", 600)]
    family.engine.breaker(None)
    assert family.judged(spared) == []


@pytest.mark.parametrize(
    "wrong", [{"reason": 0}, {"reason": 10}, {"action": 0}, {"action": 6}, {"slots": 0}, {"slots": 2, "watches": 1}]
)
def test_an_impossible_action_is_refused(engine: Engine, world: World, wrong: dict[str, Any]) -> None:
    root, _ = world.start_root(0)
    right: dict[str, Any] = {"time_ns": 1, "process": root.id, "slots": 1, "reason": 1, "action": 1}
    assert engine.ingest(enforced_record(**right)) == 1
    assert engine.ingest(enforced_record(**right | wrong)) == 0
    assert engine.losses()["bad_record"] == 1

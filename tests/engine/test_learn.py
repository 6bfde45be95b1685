"""What is learned from a record is quiet about it, whatever the record tells."""

from __future__ import annotations

import socket
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import config
from monitor.capture.recordfile import RecordedWatch, RecordWriter
from monitor.engine._native import lib
from monitor.engine.records import Endpoint, exit_record, lost_record, socket_record
from monitor.errors import ConfigInvalid, RecordFileInvalid
from monitor.learning.command import fired, learn, observe
from monitor.options import LearnOptions

if TYPE_CHECKING:
    from tests.engine.conftest import Process, Tools, World

MINUTE_NS = 60 * 10**9
IMAGES = [b"/nowhere/a", b"/nowhere/b", b'/nowhere/"quoted" \\ and #', "/nowhere/é".encode()]
ADDRESSES = ["192.0.2.1", "192.0.2.77", "198.51.100.3", "2001:db8::1"]
ACTIONS = [
    "fork",
    "fork",
    "fork",
    "execute",
    "end",
    "other user",
    "adopt",
    "again",
    "sync",
    "connect",
    "listen",
    "wait",
]
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=60)


def _write(path: Path, *parts: bytes) -> Path:
    with RecordWriter(path, [RecordedWatch(slot=0, name="one", kind="process", value="myapp")], 10**18) as writer:
        for part in parts:
            writer.append(part)
    return path


def _connects(world: World, owner: Process, cookie: int, address: str) -> bytes:
    remote = Endpoint(ip_address(address), 443)
    return socket_record(
        event=lib.KW_SOCKET_CONNECTED,
        time_ns=world.tick(),
        process=owner.id,
        watches=1,
        cookie=cookie,
        family=socket.AF_INET6 if remote.address.version == 6 else socket.AF_INET,
        remote=remote,
    )


def _listens(world: World, owner: Process, cookie: int, port: int) -> bytes:
    return socket_record(
        event=lib.KW_SOCKET_LISTENING,
        time_ns=world.tick(),
        process=owner.id,
        watches=1,
        cookie=cookie,
        local=Endpoint(ip_address("127.0.0.1"), port),
    )


def _step(world: World, action: str, who: int, which: int) -> bytes:  # noqa: PLR0911 - one return an action
    """What this does to somebody who lives."""
    kin = [process for process in world.live if process.kin]
    chosen = kin[who % len(kin)] if kin else world.start_root(0)[0]
    if action == "fork":
        return world.fork(chosen)[1]
    if action == "execute":
        chosen.exe = IMAGES[which]
        return world.become_root(chosen)
    if action == "adopt":
        return world.adopt(chosen)[1]
    if action == "again":
        return world.start_root(0)[1]
    if action == "sync":
        return world.rows()
    if action == "connect":
        return _connects(world, chosen, 100 + who, ADDRESSES[which])
    if action == "listen":
        return _listens(world, chosen, 200 + who, 8000 + which)
    if action == "wait":
        world.now_ns += which * MINUTE_NS // 4
        return b""
    ended = world.end(chosen)
    if action == "end":
        return ended
    return exit_record(
        time_ns=world.now_ns,
        process=chosen.id,
        watches=chosen.watches,
        roots=chosen.roots,
        comm=chosen.comm,
        lineage=chosen.outermost,
        status=0,
        uid=33 + which,
    )


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, head_room=st.sampled_from([0, 20]), networks=st.sampled_from([None, (24, 64)]))
def test_what_was_learned_never_fires_on_what_it_was_learned_from(
    tools: type[Tools], steps: list[tuple[str, int, int]], head_room: int, networks: tuple[int, int] | None
) -> None:
    world = tools.World()
    parts = [world.start_root(0)[1], *(_step(world, *step) for step in steps)]
    with tempfile.TemporaryDirectory() as folder:
        source, output = _write(Path(folder, "records"), *parts), Path(folder, "out.toml")
        options = LearnOptions(source=source, output=output, head_room=head_room, networks=networks)
        assert learn(None, options) == 0
        (watch,) = config.load(output).watches
        assert not fired(source, {"one": watch.expect})
        written = output.read_bytes()
        assert learn(None, options) == 0, "nothing is new to it"
        assert output.read_bytes() == written
        assert learn(None, LearnOptions(source=source, widen=output, head_room=head_room, networks=networks)) == 0
        (again,) = config.load(output).watches
        assert again == watch, "what is wide enough stays as it is"


def test_each_rule_fires_on_a_run_that_breaks_it(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, started = world.start_root(0)
    child, forked = world.fork(root)
    child.exe = IMAGES[0]
    quiet = _write(tmp_path / "quiet", started, forked, world.become_root(child), world.end(child))
    deep, first = world.fork(root)
    deeper, second = world.fork(deep)
    deeper.exe = IMAGES[1]
    parts = [started, first, second, world.become_root(deeper)]
    parts.append(_step(world, "other user", 1, 0))
    owner = world.live[0]
    parts += [_connects(world, owner, 1, ADDRESSES[0]), _listens(world, owner, 2, 80)]
    loud = _write(tmp_path / "loud", *parts)
    output = tmp_path / "out.toml"
    assert learn(None, LearnOptions(source=quiet, output=output, check=loud, head_room=0)) == 1
    said = capsys.readouterr().err
    for rule in ("child_processes", "depth", "executables", "edges", "uids"):
        assert f"watch one: {rule}: 0 alarms on what was learned from, 1 on what it was checked with" in said
    assert "watch one: destinations" not in said, "no socket was told of, so that none can be expected or not"
    assert "destinations is not judged" in output.read_text()
    assert learn(None, LearnOptions(source=loud, output=output)) == 1
    said = capsys.readouterr().err
    assert "new: watch one: executables: /nowhere/b" in said
    assert "new: watch one: uids: 33" in said
    assert f"--widen {output}" in said
    assert learn(None, LearnOptions(source=loud, widen=output, check=quiet)) == 0
    (watch,) = config.load(output).watches
    assert watch.expect.executables == ("/nowhere/a", "/nowhere/b")
    assert watch.expect.uids == (33, 1000)
    assert watch.expect.destinations is None, "a rule that the file leaves unset stays so"


def test_a_user_that_only_the_exit_tells_is_learned(world: World, tmp_path: Path) -> None:
    root, started = world.start_root(0)
    _, forked = world.fork(root)
    source = _write(tmp_path / "records", started, forked, _step(world, "other user", 1, 2))
    found = observe(source, {})
    assert set(found.observed["one"].all_of("uids")) == {1000, 35}


def test_a_record_without_the_application_teaches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = _write(tmp_path / "records"), tmp_path / "out.toml"
    assert learn(None, LearnOptions(source=source, output=output)) == 1
    assert not output.exists()
    assert "watch one: nothing was seen" in capsys.readouterr().err


def test_losses_make_it_incomplete_and_the_file_says_so(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, started = world.start_root(0)
    lost = lost_record(time_ns=world.tick(), stage="ring_full", count=7)
    source, output = _write(tmp_path / "records", started, lost), tmp_path / "out.toml"
    assert learn(None, LearnOptions(source=source, output=output)) == 1
    assert "7 ring_full" in capsys.readouterr().err
    assert "# INCOMPLETE: details were lost (7 ring_full)" in output.read_text()


def test_a_name_that_is_not_utf8_cannot_be_expected_and_that_is_said(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, started = world.start_root(0)
    child, forked = world.fork(root)
    child.exe = b"/nowhere/\xff"
    source = _write(tmp_path / "records", started, forked, world.become_root(child))
    output = tmp_path / "out.toml"
    assert learn(None, LearnOptions(source=source, output=output)) == 1
    assert "its name is not UTF-8" in capsys.readouterr().err
    assert config.load(output).watches[0].expect.executables == ()
    assert "# cannot be expected, and will raise alarms: executables" in output.read_text()


def test_a_file_that_expects_nothing_is_told_so_and_takes_all_when_it_is_widened(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = _write(tmp_path / "records", world.start_root(0)[1]), tmp_path / "out.toml"
    output.write_text('# mine\n[[watch]]\nname = "one"\nprocess = "app"\n\n[log]\nfile = "/log"\n')
    assert learn(None, LearnOptions(source=source, output=output)) == 1
    assert "the file expects nothing of it" in capsys.readouterr().err
    assert learn(None, LearnOptions(source=source, widen=output)) == 0
    read = config.load(output)
    assert (read.log.file, read.watches[0].value, read.watches[0].expect.child_processes) == ("/log", "app", 0)
    assert output.read_text().startswith("# mine\n")


def test_what_is_in_the_way_is_said_before_anybody_waits(world: World, tmp_path: Path) -> None:
    source = _write(tmp_path / "records", world.start_root(0)[1])
    there = tmp_path / "there"
    there.write_text("")
    for options, words in (
        (LearnOptions(source=tmp_path / "none"), "none: cannot be read .No such file"),
        (LearnOptions(source=source, check=tmp_path / "none"), "none: cannot be read .No such file"),
        (LearnOptions(source=source, widen=tmp_path / "none"), "cannot be read"),
        (LearnOptions(source=source, output=tmp_path / "no" / "file"), "its directory cannot be written to"),
        (LearnOptions(source=source, profile=there), "exists; name a new file with --profile"),
        (LearnOptions(source=source, widen=source, output=there), "exists; name a new file with -o"),
    ):
        with pytest.raises((ConfigInvalid, RecordFileInvalid), match=words):
            learn(None, options)
    assert there.read_text() == ""


def test_a_file_that_is_not_written_watch_by_watch_is_not_widened_in_place(world: World, tmp_path: Path) -> None:
    source, output = _write(tmp_path / "records", world.start_root(0)[1]), tmp_path / "out.toml"
    text = 'watch = [{ name = "one", process = "myapp", expect = { depth = 0 } }]\n'
    output.write_text(text)
    with pytest.raises(ConfigInvalid, match="move them to a file of their own"):
        learn(None, LearnOptions(source=source, widen=output))
    assert output.read_text() == text

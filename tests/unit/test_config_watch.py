"""A watch's value is checked against the machine it names things on."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import Config, notes, parse, with_command_line
from monitor.errors import ConfigInvalid
from monitor.expect import ImpossibleValue, edges, executables, images_of, networks, ports
from monitor.watch import WatchKind, canonical, derived_name, is_name, legal_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real process whose executable is called `my.app`."""
    shutil.copy("/bin/sleep", tmp_path / "my.app")
    process = subprocess.Popen([tmp_path / "my.app", "600"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@settings(deadline=None)
@given(st.text())
def test_any_base_name_becomes_legal_or_empty(text: str) -> None:
    assert (legal_name(text) == "") == (text == "")
    assert text == "" or is_name(legal_name(text))


@settings(deadline=None)
@given(st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True))
def test_a_legal_name_stays_as_it_is(name: str) -> None:
    assert is_name(name)
    assert legal_name(name) == name


@pytest.mark.parametrize(
    ("kind", "value", "made"),
    [
        ("process", "my app", "my app"),
        ("process", "naïve", "naïve"),
        ("unit", "myapp", "myapp.service"),
        ("unit", "my.app", "my.app.service"),
        ("unit", "myapp.service", "myapp.service"),
        ("unit", "session-1.scope", "session-1.scope"),
        ("unit", "user.slice", "user.slice"),
        ("unit", "getty@tty1", "getty@tty1.service"),
        ("cgroup", "/system.slice/myapp.service", "/system.slice/myapp.service"),
        ("cgroup", "/system.slice/", "/system.slice"),
        ("cgroup", "/sys/fs/cgroup/system.slice", "/system.slice"),
        ("cmdline", r"python .*myapp\.py", r"python .*myapp\.py"),
        ("exe", "/bin/sh", "/bin/sh"),
        ("pid", 4_194_304, "4194304"),
    ],
)
def test_a_value_has_one_form(kind: WatchKind, value: str | int, made: str) -> None:
    assert canonical(kind, value) == made
    assert kind == "pid" or canonical(kind, made) == made


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        ("process", "", "text"),
        ("process", "a\0b", "text"),
        ("process", "/bin/sh", "the path"),
        ("process", "ä" * 32, "at most 63 bytes, found 64"),
        ("exe", "bin/sh", "absolute"),
        ("exe", "/bin", "none"),
        ("exe", "/dev/null", "none"),
        ("exe", "/bin/sh/app", "Not a directory"),
        ("exe", "/nowhere/sh", "neither /nowhere/sh nor the directory"),
        ("exe", "/" + "a" * 4095, "at most 4095 bytes"),
        ("exe", "/tmp/" + "a" * 300, "File name too long"),  # noqa: S108 - nothing is made there
        ("unit", "my app", "systemd unit"),
        ("unit", ".service", "systemd unit"),
        ("unit", "myapp.socket", "that has processes"),
        ("unit", "myapp.timer", "that has processes"),
        ("unit", "getty@.service", "an instance"),
        ("unit", "a/b", "systemd unit"),
        ("cgroup", "system.slice", "absolute"),
        ("cgroup", "/a//b", "absolute"),
        ("cgroup", "/a/../b", "absolute"),
        ("cgroup", "/", "the root"),
        ("cgroup", "/sys/fs/cgroup/", "the root"),
        ("cmdline", "(", "regular expression"),
        ("cmdline", ".*", "empty command line"),
        ("pid", 0, "1 to 4194304"),
        ("pid", 4_194_305, "1 to 4194304"),
    ],
)
def test_a_value_that_cannot_be_is_refused(kind: WatchKind, value: str | int, why: str) -> None:
    with pytest.raises(ImpossibleValue, match=why) as caught:
        canonical(kind, value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        ("process", "my.app", "my_app"),
        ("exe", "/opt/my app/run.sh", "run_sh"),
        ("unit", "my.app.service", "my_app"),
        ("cgroup", "/system.slice/myapp.service", "myapp_service"),
    ],
)
def test_a_watch_without_a_name_is_named_after_its_value(kind: WatchKind, value: str, name: str) -> None:
    assert derived_name(kind, value) == name


def test_a_command_line_needs_a_name() -> None:
    with pytest.raises(ConfigInvalid, match=r"kin.toml: watch\[0\].cmdline: .*needs a name; add name"):
        parse('[[watch]]\ncmdline = "myapp"', "kin.toml")


def test_a_pid_is_named_after_its_executable(sleeper: subprocess.Popen[bytes]) -> None:
    (watch,) = with_command_line(Config(), pids=[sleeper.pid]).watches
    assert (watch.name, watch.kind, watch.value) == ("my_app", "pid", str(sleeper.pid))


def test_a_pid_whose_executable_was_deleted_keeps_its_name(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "my.app").unlink()
    assert with_command_line(Config(), pids=[sleeper.pid]).watches[0].name == "my_app"


def test_a_pid_without_a_process_has_no_name_but_may_be_given_one(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(ConfigInvalid, match=f"--pid: expected a running process, found no process {sleeper.pid}"):
        with_command_line(Config(), pids=[sleeper.pid])
    config = parse(f'[[watch]]\nname = "gone"\npid = {sleeper.pid}', "kin.toml")
    assert notes(config) == (f"watch gone: there is no process {sleeper.pid}",)


def test_a_thread_is_no_process() -> None:
    ready, done = threading.Event(), threading.Event()
    tids: list[int] = []

    def live() -> None:
        tids.append(threading.get_native_id())
        ready.set()
        done.wait()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ConfigInvalid, match=f"a thread of process {os.getpid()}; watch pid {os.getpid()}"):
            with_command_line(Config(), pids=tids)
    finally:
        done.set()
        thread.join()


def test_an_executable_may_come_later_when_its_directory_is_there(tmp_path: Path) -> None:
    path = tmp_path / "later"
    assert canonical("exe", str(path)) == str(path)
    config = with_command_line(Config(), exes=[str(path)])
    assert len(notes(config)) == 1
    path.touch()
    assert notes(config) == ()


def test_an_expected_executable_may_come_later_and_is_said_to_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "later"
    text = f'[[watch]]\nprocess = "a"\nexpect = {{ executables = ["/bin/sh", "{path}"] }}'
    config = parse(text, "kin.toml")
    assert notes(config) == (
        f"watch a: the expected executable {path} does not exist; it is not expected before a reload",
    )
    shutil.copy("/bin/true", path)
    assert notes(config) == ()


def test_an_expected_executable_is_the_file_at_the_end_of_its_links(tmp_path: Path) -> None:
    program = shutil.copy("/bin/true", tmp_path / "program")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "other").symlink_to(program)
    assert executables([str(tmp_path / "link"), str(program)]) == (str(program),)
    assert edges([f"{tmp_path}/link -> {tmp_path}/other"]) == (f"{program} -> {program}",)
    assert images_of(f"{program} -> {program}") == (str(program), str(program))


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("edges = [], destinations = [], depth = 1", ["edges, destinations raise alarms only"]),
        ("listening_ports = [1]", ["listening_ports raise alarms only", "enforce has nothing to act on"]),
        ("memfd = true", ["enforce has nothing to act on"]),
        ("memfd = false", []),
        ("child_processes = 0", []),
    ],
)
def test_what_enforcement_does_not_reach_is_said(expect: str, said: list[str]) -> None:
    enforced = parse(f'[[watch]]\nprocess = "a"\nenforce = "kill"\nexpect = {{ {expect} }}', "kin.toml")
    told = notes(enforced)
    assert len(told) == len(said)
    assert all(words in note for words, note in zip(said, told, strict=True))


def test_a_link_in_a_circle_is_no_executable(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ImpossibleValue, match="symbolic links"):
        canonical("exe", str(tmp_path / "loop"))


def test_an_executable_that_cannot_be_read_is_refused() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        secret = Path(directory, "secret")
        secret.touch(mode=0o000)
        child = os.fork()  # access(2) lets root read everything, so somebody else has to ask
        if child == 0:
            status = 1
            try:
                os.setuid(65_534)
                canonical("exe", str(secret))
            except ImpossibleValue as refusal:
                status = 0 if "not readable" in refusal.what else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.ip_addresses(), st.integers(0, 32)), max_size=8), st.ip_addresses())
def test_networks_in_their_one_form_hold_the_same_addresses(prefixes: list[tuple[Any, int]], address: Any) -> None:  # noqa: ANN401
    written = [f"{of}/{length}" for of, length in prefixes]
    made = networks(written)
    assert networks(made) == made
    assert len(set(made)) == len(made)

    def holds(texts: Any) -> bool:  # noqa: ANN401
        return any(address in ipaddress.ip_network(text, strict=False) for text in texts)

    assert holds(made) == holds(written)


def test_ipv4_mapped_into_ipv6_is_ipv4_and_an_address_a_network_of_one() -> None:
    assert networks(["::ffff:10.1.2.3/104", "10.9.9.9/8", "192.0.2.7", "::1"]) == (
        "10.0.0.0/8",
        "192.0.2.7/32",
        "::1/128",
    )
    assert networks(["::ffff:0:0/95"]) == ("::fffe:0:0/95",)  # more than IPv4: it stays what it is


@given(st.lists(st.integers(1, 65535), max_size=256))
def test_ports_are_ascending_and_each_once(numbers: list[int]) -> None:
    assert list(ports(numbers)) == sorted(set(numbers))

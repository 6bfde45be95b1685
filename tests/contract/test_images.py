"""What a process runs and how it ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from msgspec import UNSET

from monitor.engine.lines import Exec, Exit, Fork, Root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Programs, Watcher

ARGV_BYTES = 8192
"""KW_ARGV_BYTES in ebpf/event.h."""


@pytest.mark.parametrize("program", ["vfork_exec", "spawn"])
def test_child_is_forked_then_runs_its_image_then_ends(
    watch: Callable[..., Watcher], programs: Programs, name: str, program: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start(program, name)
    pid = app.fact("image")["pid"]
    image = watcher.wait_for(Exec, pid=pid)
    app.release()
    exit_ = watcher.wait_for(Exit, pid=pid)
    watcher.stop()
    path = str(programs.path(program, name))
    assert watcher.told(pid) == ["fork", "exec", "exit"]
    assert image.exe == path
    assert image.argv == (path, "image")
    assert image.cwd == str(programs.directory)
    assert (image.ppid, image.depth, image.uid, image.gid) == (app.pid, 1, os.getuid(), os.getgid())
    assert (image.truncated, image.memfd, image.deleted, image.lossy) == (UNSET,) * 4
    assert exit_.signal is UNSET
    if not watcher.unknown("wait status"):
        assert exit_.exit_code == 0


def test_exit_by_signal_is_not_status_zero(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("signal_exit", name)
    children = [app.fact("child", number)["pid"] for number in range(1, 6)]
    for pid in children:
        watcher.wait_for(Fork, pid=pid)
    app.release()
    for pid in children:
        watcher.wait_for(Exit, pid=pid)
    watcher.stop()
    statuses = {fact["pid"]: fact["status"] for fact in app.facts("ended")}
    assert list(statuses) == children
    assert any(os.WCOREDUMP(status) for status in statuses.values()), "one of them can dump core here"
    for pid, status in statuses.items():
        exit_ = watcher.one(Exit, pid=pid)
        told = (exit_.exit_code, exit_.signal, exit_.core)
        if watcher.unknown("wait status"):
            assert told == (UNSET, UNSET, UNSET), "unknown is left out"
        elif os.WIFEXITED(status):
            assert told == (os.WEXITSTATUS(status), UNSET, UNSET)
        else:
            assert told == (UNSET, os.WTERMSIG(status), os.WCOREDUMP(status) or UNSET)


def test_images_of_one_process_follow_each_other(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    images = 4
    watcher = watch("--watch", name)
    app = programs.start("exec_chain", name, str(images))
    pid = app.fact("image")["pid"]
    for left in range(images - 1, -1, -1):
        watcher.wait_for(Exec, pid=pid, argv=(str(programs.path("exec_chain", name)), str(left), "image"))
        if left:
            app.go()
    app.release()
    watcher.wait_for(Exit, pid=pid)
    watcher.stop()
    assert watcher.told(pid) == ["fork", *["exec"] * images, "exit"]
    assert watcher.metrics()[f"child_execs_{name}"] == images
    assert watcher.metrics()[f"child_exes_{name}"] == [str(programs.path("exec_chain", name))]


def test_exec_that_fails_is_no_image(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("fork_exec", name, "1", str(programs.directory / "nothing"))
    assert os.WEXITSTATUS(app.fact("ended")["status"]) == 127
    pid = app.fact("child")["pid"]
    watcher.wait_for(Root, pid=app.pid)
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert watcher.of(Exec) == []
    if not watcher.unknown("short-lived process"):
        assert watcher.told(pid) == ["fork", "exit"]
        assert watcher.one(Exit, pid=pid).exit_code == 127


def test_script_is_named_beside_its_interpreter(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    script = programs.path("script", "a script.sh")
    watcher = watch("--watch", name)
    app = programs.start("fork_exec", name, "1", str(script))
    pid = app.fact("script")["pid"]
    image = watcher.wait_for(Exec, pid=pid)
    interpreter = os.path.realpath("/bin/sh")
    app.release()
    exit_ = watcher.wait_for(Exit, pid=pid)
    watcher.stop()
    assert (image.exe, image.script, image.comm) == (interpreter, str(script), script.name)
    assert image.argv == ("/bin/sh", str(script))
    if not watcher.unknown("wait status"):
        assert exit_.exit_code == 5


def test_script_with_the_watched_name_is_a_root(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    long_name = f"{name}-longer-than-a-comm"
    watcher = watch("--watch", long_name)
    app = programs.start("script", long_name)
    root = watcher.wait_for(Root, pid=app.pid)
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    assert root.script == str(programs.path("script", long_name))


def test_image_in_memory_says_so(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("memfd_exec", name)
    pid = app.fact("image")["pid"]
    image = watcher.wait_for(Exec, pid=pid)
    app.release()
    watcher.wait_for(Exit, pid=pid)
    watcher.stop()
    assert (image.exe, image.memfd, image.deleted) == ("/memfd:hid", True, True)


def test_image_without_a_name_says_so(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    copy = programs.path("deleted_exe", f"{name}c")
    watcher = watch("--watch", name)
    app = programs.start("deleted_exe", name, str(copy))
    pid = app.fact("image")["pid"]
    assert not copy.exists()
    image = watcher.wait_for(Exec, pid=pid)
    app.release()
    watcher.wait_for(Exit, pid=pid)
    watcher.stop()
    assert (image.exe, image.deleted, image.memfd) == (str(copy), True, UNSET)


def test_argv_of_one_mebibyte_is_truncated_and_says_so(
    watch: Callable[..., Watcher], programs: Programs, name: str
) -> None:
    watcher = watch("--watch", name)
    app = programs.start("big_argv", name)
    fact = app.fact("image")
    assert fact["argv_bytes"] > 1 << 20
    image = watcher.wait_for(Exec, pid=fact["pid"])
    app.release()
    watcher.wait_for(Exit, pid=fact["pid"])
    watcher.stop()
    path = str(programs.path("big_argv", name))
    assert image.truncated is True
    assert image.argv == (path, "a" * (ARGV_BYTES - len(path) - 1))
    assert image.exe == path


def test_odd_argv_is_one_valid_line(watch: Callable[..., Watcher], programs: Programs, name: str) -> None:
    watcher = watch("--watch", name)
    app = programs.start("odd_argv", name)
    image, odd_comm = app.fact("image"), app.fact("odd_comm")
    watcher.wait_for(Fork, pid=odd_comm["pid"])
    app.release()
    watcher.wait_for(Exit, pid=image["pid"])
    watcher.stop()
    told = watcher.one(Exec, pid=image["pid"])
    assert isinstance(told.argv, tuple)
    assert len(told.argv) == image["argc"]
    assert told.lossy is True
    assert told.argv[:5] == ("odd_argv", "", 'a\n{"event":"fork"}', "\x1b[31mred\x07", "\"quoted\\\" 'single'")
    assert told.argv[6] == "\u2028 sep"
    assert told.argv[9:] == ("\U0001f411 sheep", "\x7f\x9b32m")
    for index, rest in ((5, " not utf-8"), (7, " overlong"), (8, " half")):
        assert told.argv[index].strip("\ufffd") == rest
        assert told.argv[index][0] == "\ufffd"
    fork = watcher.one(Fork, pid=odd_comm["pid"])
    assert (fork.comm, fork.lossy) == ('\ufffd\n"\\\x1b', True)


def test_lines_are_safe_to_print(watch: Callable[..., Watcher], programs: Programs, name: str, tmp_path: Path) -> None:
    watcher = watch("--watch", name)
    app = programs.start("odd_argv", name)
    watcher.wait_for(Exec, pid=app.fact("image")["pid"])
    app.release()
    watcher.wait_for(Exit, pid=app.pid)
    watcher.stop()
    text = (tmp_path / "events.jsonl").read_bytes().decode()
    assert not [letter for letter in text.replace("\n", "") if not letter.isprintable()]

"""Watches by command line: the process and its children are followed before anybody has read what it is called."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from monitor.engine.lines import Exec, Exit, Fork, Root
from monitor.watch import Watch
from tests.kernel.follow import follow

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 40
SCRIPT = """
/bin/true
(/bin/true; (/bin/true &) )
wait
"""


def _script(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.write_text(SCRIPT)
    return path


def test_children_forked_before_the_verdict_are_kin(tmp_path: Path) -> None:
    """Each run makes 4 children, 3 of which run an image; all are told and counted, others' children are not."""
    wanted, other = _script(tmp_path, "wanted.sh"), _script(tmp_path, "other.sh")

    def act() -> None:
        for _ in range(RUNS):
            subprocess.run(["/bin/sh", wanted], check=True)
            subprocess.run(["/bin/sh", other], check=True)
        subprocess.run(["sleep", "0.2"], check=True)

    told, row = follow([Watch(name="app", kind="cmdline", value=r"^/bin/sh \S*wanted\.sh$")], act)
    assert [type(line) for line in told].count(Root) == RUNS
    assert sum(isinstance(line, Fork) for line in told) == 4 * RUNS
    assert sum(isinstance(line, Exec) for line in told) == 3 * RUNS
    assert sum(isinstance(line, Exit) for line in told) == 5 * RUNS
    assert (row.root_starts, row.roots, row.spawned, row.execs, row.exits, row.alive) == (
        RUNS, 0, 4 * RUNS, 3 * RUNS, 4 * RUNS, 0,
    )  # fmt: skip
    assert {line.depth for line in told if isinstance(line, Fork)} == {1, 2}


def test_a_match_below_a_match_is_a_descendant(tmp_path: Path) -> None:
    """Kinship beats matching by command line too."""
    inner = _script(tmp_path, "wanted.sh")
    outer = tmp_path / "wanted-outer.sh"
    outer.write_text(f"/bin/sh {inner}\n/bin/true\n")

    def act() -> None:
        subprocess.run(["/bin/sh", outer], check=True)
        subprocess.run(["sleep", "0.2"], check=True)

    told, row = follow([Watch(name="app", kind="cmdline", value="wanted")], act)
    assert [type(line) for line in told].count(Root) == 1
    assert isinstance(told[0], Root)
    assert (row.root_starts, row.spawned, row.alive) == (1, 6, 0)


def test_a_process_may_be_kin_by_executable_and_by_command_line(tmp_path: Path) -> None:
    """One watch sees it at once, the other after its verdict; both count the same children."""
    wanted = _script(tmp_path, "wanted.sh")
    shell = shutil.copy("/bin/sh", tmp_path / "shell")

    def act() -> None:
        subprocess.run([shell, wanted], check=True)
        subprocess.run(["sleep", "0.2"], check=True)

    watches = [
        Watch(name="app", kind="cmdline", value=r"wanted\.sh"),
        Watch(name="shell", kind="exe", value=str(shell)),
    ]
    told, row = follow(watches, act)
    forks = [line for line in told if isinstance(line, Fork)]
    by_watch = {name: sorted(line.pid for line in forks if line.watch == name) for name in ("app", "shell")}
    assert by_watch["app"] == by_watch["shell"]
    assert row.spawned == 4


def test_two_expressions_that_find_the_same_process_each_tell_it_once(tmp_path: Path) -> None:
    """An exec that one watch knows of already, and another has to be asked about, is one exec of each."""
    wanted = tmp_path / "wanted.sh"
    wanted.write_text("sleep 0.1\n/bin/sh -c '/bin/true; /bin/true # kwextra'\n")

    def act() -> None:
        subprocess.run(["/bin/sh", wanted], check=True)

    watches = [
        Watch(name="app", kind="cmdline", value=r"wanted\.sh"),
        Watch(name="more", kind="cmdline", value="kwextra"),
    ]
    told, row = follow(watches, act)
    execs = [(line.watch, line.pid, line.comm) for line in told if isinstance(line, Exec)]
    assert len(execs) == len(set(execs))
    assert row.execs == sum(watch == "app" for watch, _, _ in execs) == 4
    assert [line.watch for line in told if isinstance(line, Root)] == ["app", "more"]


def test_what_runs_already_is_adopted_with_its_children(tmp_path: Path) -> None:
    """At start the running processes' command lines are read."""
    script = tmp_path / "wanted.sh"
    script.write_text("sleep 60 &\nread line\nkill $!\nwait\n")
    with subprocess.Popen(["/bin/sh", script], stdin=subprocess.PIPE) as process:
        try:
            _wait_for_child(process.pid)
            told, row = follow(
                [Watch(name="app", kind="cmdline", value=r"wanted\.sh")], lambda: process.communicate(b"\n")
            )
        finally:
            process.kill()
    roots = [line for line in told if isinstance(line, Root)]
    assert [(line.pid, line.cause) for line in roots] == [(process.pid, "running")]
    assert (row.root_starts, row.adopted, row.exits, row.alive) == (1, 1, 1, 0)


def _wait_for_child(pid: int) -> None:
    while not subprocess.run(["pgrep", "-P", str(pid), "-x", "sleep"], capture_output=True, check=False).stdout:
        pass

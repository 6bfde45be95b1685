"""Rules on lineage with the core capture: real processes break each of them, and nobody else is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.rules import identities
from monitor.engine.lines import Alarm, Clear, Exec, Fork
from monitor.expect import Expect, edges, executables
from monitor.watch import Watch
from tests.kernel.follow import follow

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.engine.lines import Line
    from tests.contract.conftest import Programs

TRUE, CAT = (os.path.realpath(path) for path in ("/bin/true", "/bin/cat"))


@pytest.fixture
def shell(tmp_path: Path, name: str) -> Path:
    """The shell under a name that nobody else has: the root."""
    return Path(shutil.copy("/bin/sh", tmp_path / name))


def judged(expect: Expect, root: Path, act: Callable[[], object]) -> list[Line]:
    """All lines; every alarm has been cleared by the end, when nobody lives any more."""
    told, _ = follow([Watch(name="app", kind="exe", value=str(root), expect=expect)], act)
    judgements = [line for line in told if isinstance(line, (Alarm, Clear))]
    standing = {line.behavior: isinstance(line, Alarm) for line in judgements}
    assert not any(standing.values()), standing
    return told


def run(root: Path, script: str) -> None:
    """The root runs a script, and all that it started has ended."""
    subprocess.run([root, "-c", f"{script}; wait; :"], check=True, stdin=subprocess.DEVNULL)


def alarms(told: list[Line]) -> list[tuple[str, object]]:
    """Behavior and value of each alarm."""
    return [(line.behavior, line.value) for line in told if isinstance(line, Alarm)]


def test_only_what_is_not_expected_alarms_and_the_alarm_says_who_and_what(shell: Path) -> None:
    told = judged(
        Expect(executables=executables(["/bin/true"])), shell, lambda: run(shell, f"{TRUE}; {CAT} /dev/null; {TRUE}")
    )
    (alarm,) = [line for line in told if isinstance(line, Alarm)]
    (image,) = [line for line in told if isinstance(line, Exec) and line.exe == CAT]
    assert (alarm.behavior, alarm.value, alarm.exe, alarm.argv) == ("executables", (CAT,), CAT, (CAT, "/dev/null"))
    assert alarm.process_ids == (image.process_id,)
    assert alarm.time == image.time
    assert isinstance(alarm.lineage, tuple)
    assert [one.exe for one in alarm.lineage] == [str(shell), CAT]


def test_the_file_is_what_is_expected_by_whatever_link_it_is_named(shell: Path, tmp_path: Path) -> None:
    program = Path(shutil.copy(TRUE, tmp_path / "program"))
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(program)
    hard.hardlink_to(program)
    expect = Expect(executables=executables([str(link)]))
    assert expect.executables == (str(program),)
    told = judged(expect, shell, lambda: run(shell, f"{link}; {hard}; {program}"))
    assert alarms(told) == []
    assert sum(isinstance(line, Exec) for line in told) == 3


def test_a_file_that_took_the_place_of_an_expected_one_is_another_one(shell: Path, tmp_path: Path) -> None:
    program, other = (Path(shutil.copy(TRUE, tmp_path / name)) for name in ("program", "other"))

    def act() -> None:
        run(shell, str(program))
        other.rename(program)
        run(shell, str(program))

    told = judged(Expect(executables=executables([str(program)])), shell, act)
    assert alarms(told) == [("executables", (str(program),))]
    assert sum(isinstance(line, Exec) for line in told) == 2


def test_a_file_that_did_not_exist_at_the_start_is_not_expected(shell: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"

    def act() -> None:
        shutil.copy(TRUE, program)
        run(shell, str(program))

    told = judged(Expect(executables=executables([str(program)])), shell, act)
    assert alarms(told) == [("executables", (str(program),))]


def test_of_a_script_the_interpreter_is_what_runs(shell: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n:\n")
    script.chmod(0o755)
    expected = executables(["/bin/sh"])
    assert alarms(judged(Expect(executables=expected), shell, lambda: run(shell, str(script)))) == []
    told = judged(Expect(executables=executables([str(script)])), shell, lambda: run(shell, str(script)))
    assert alarms(told) == [("executables", expected)]


def test_an_edge_leads_from_the_image_that_forked_to_the_one_executed(shell: Path) -> None:
    sh = os.path.realpath("/bin/sh")
    expect = Expect(edges=edges([f"{shell} -> /bin/sh", "/bin/sh -> /bin/true"]))
    told = judged(expect, shell, lambda: run(shell, f"/bin/sh -c '{TRUE}; {CAT} /dev/null; :'; {TRUE}"))
    assert alarms(told) == [("edges", (f"{sh} -> {CAT}",)), ("edges", (f"{shell} -> {TRUE}",))]


def test_too_deep_is_told_at_the_fork(shell: Path) -> None:
    told = judged(Expect(depth=2), shell, lambda: run(shell, f"( ( ( {TRUE}; :); :); :)"))
    (alarm,) = [line for line in told if isinstance(line, Alarm)]
    (fork,) = [line for line in told if isinstance(line, Fork) and line.depth == 3]
    assert (alarm.behavior, alarm.process_ids, alarm.time) == ("depth", (fork.process_id,), fork.time)
    assert alarm.value == 3


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux has no setpriv here")
def test_another_user_is_told_when_it_executes(shell: Path) -> None:
    change = "setpriv --reuid=65534 --clear-groups"
    told = judged(Expect(uids=(0,)), shell, lambda: run(shell, f"{TRUE}; {change} {TRUE}"))
    (alarm,) = [line for line in told if isinstance(line, Alarm)]
    (image,) = [line for line in told if isinstance(line, Exec) and line.uid == 65534]
    assert (alarm.behavior, alarm.value, alarm.process_ids) == ("uids", (65534,), (image.process_id,))


def test_an_image_in_memory_is_told(programs: Programs, name: str) -> None:
    root = programs.path("memfd_exec", name)

    def act() -> None:
        app = programs.run(root)
        app.fact("image")
        app.release()

    told = judged(Expect(memfd=False), root, act)
    assert alarms(told) == [("memfd", ("/memfd:hid",))]


def test_a_file_that_was_unlinked_before_it_ran_is_told(programs: Programs, name: str) -> None:
    root, copy = programs.path("deleted_exe", name), programs.path("deleted_exe", f"{name}c")

    def act() -> None:
        app = programs.run(root, str(copy))
        app.fact("image")
        app.release()

    told = judged(Expect(deleted=False, memfd=False), root, act)
    assert alarms(told) == [("deleted", (str(copy),))]


def test_a_root_that_becomes_something_else_is_told(shell: Path) -> None:
    expect = Expect(executables=executables(["/bin/true"]))
    again = f"exec {shell} -c 'exec {TRUE}'"
    assert alarms(judged(expect, shell, lambda: run(shell, again))) == []
    told = judged(expect, shell, lambda: run(shell, f"exec {CAT} /dev/null"))
    assert alarms(told) == [("root_image", (CAT,))]


@pytest.mark.parametrize("place", ["/usr/bin", "tmp_path", "/dev/shm"])  # noqa: S108 - a directory of its own below it
def test_a_file_is_known_by_what_the_kernel_says_of_it(shell: Path, tmp_path: Path, place: str) -> None:
    """The device of an identity is that of the image record's, whatever file system the file lies on."""
    with tempfile.TemporaryDirectory(dir=tmp_path if place == "tmp_path" else place) as directory:
        path = Path(shutil.copy(TRUE, Path(directory) / "program"))
        (identity,) = identities([str(path)])
        status = path.stat()
        assert (identity.inode, identity.size, identity.ctime_ns) == (
            status.st_ino, status.st_size, status.st_ctime_ns,
        )  # fmt: skip
        told = judged(Expect(executables=executables([str(path)])), shell, lambda: run(shell, str(path)))
    assert alarms(told) == []
    assert any(isinstance(line, Exec) and line.exe == str(path) for line in told)
    assert identities([str(path)]) == ()

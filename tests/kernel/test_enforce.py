"""Who breaks an expectation of a watch that kills dies before its first instruction; nobody else does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from monitor.expect import Expect
from monitor.schema import Capture as CaptureTable
from monitor.schema import Enforcement
from monitor.watch import Watch
from tests.contract.conftest import eventually
from tests.kernel.enforcing import MANY, forks_die, killing, opened

if TYPE_CHECKING:
    from tests.contract.conftest import Programs

COUNT = 10_000 if os.environ.get("KINWATCH_LONG") == "1" else 500
FORKS = ("fork", "vfork", "clone_vm", "clone3", "namespace", "thread")
EXECS = ("exec_fork", "exec_vfork", "exec_spawn", "exec_thread", "exec_memory", "exec_deleted", "exec_traced")
SHELL = os.path.realpath("/bin/sh")
PYTHON = os.path.realpath(sys.executable)
NOBODY = 65534


def _did(count: int, *, killed: bool) -> dict[str, object]:
    """What `attempts` tells when all did, or none."""
    return {"fact": "attempts", "bytes": 0 if killed else count, "killed": count if killed else 0, "failed": 0}


@forks_die
@pytest.mark.parametrize("way", FORKS)
def test_a_child_too_many_never_runs(programs: Programs, name: str, way: str) -> None:
    """Not one byte comes of the forks of a watch without children; beside it the same forks of a stranger do all."""
    with opened([killing(name, Expect(child_processes=0))]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, way, str(COUNT))
        stranger = programs.start("attempts", f"not{name}", way, str(COUNT))
        assert app.fact("attempts") == _did(COUNT, killed=True)
        assert stranger.fact("attempts") == _did(COUNT, killed=False)
        row = enforcing.row(name)
        assert (row.enforced, row.would_enforce, row.spawned) == (COUNT, 0, COUNT)
        assert (row.alive, row.exits, row.roots) == (0, COUNT, 1)


@pytest.mark.parametrize("way", EXECS)
def test_an_unexpected_image_never_runs(programs: Programs, name: str, way: str) -> None:
    """Not one byte comes of an image that is none of the expected ones."""
    mark = programs.path("mark", f"mark{name}")
    with opened([killing(name, Expect(executables=(SHELL,)))]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, way, str(COUNT), str(mark))
        stranger = programs.start("attempts", f"not{name}", way, str(COUNT), str(mark))
        assert app.fact("attempts") == _did(COUNT, killed=True)
        assert stranger.fact("attempts") == _did(COUNT, killed=False)
        assert enforcing.row(name).enforced == COUNT


@pytest.mark.parametrize("way", ["exec_shell", "exec_orphan"])
def test_an_unexpected_image_far_from_the_root_never_runs(programs: Programs, name: str, way: str) -> None:
    """Started by an expected shell, or by an orphan in a session of its own."""
    mark = programs.path("mark", f"mark{name}")
    with opened([killing(name, Expect(executables=(SHELL,)))]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, way, "100", str(mark))
        assert app.fact("attempts")["bytes"] == 0
        row = enforcing.row(name)
        assert (row.enforced, row.alive) == (100, 0)
        assert row.execs == (200 if way == "exec_shell" else 100), "the expected shell ran"


@pytest.mark.parametrize("way", ["exec_fork", "exec_vfork", "exec_spawn", "exec_thread", "exec_traced", "exec_shell"])
def test_expected_images_all_run(programs: Programs, name: str, way: str) -> None:
    mark = programs.path("mark", f"mark{name}")
    expect = Expect(executables=(SHELL, str(mark)), memfd=False, deleted=False, depth=2, uids=(0,))
    with opened([killing(name, expect)]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, way, str(COUNT), str(mark))
        assert app.fact("attempts") == _did(COUNT, killed=False)
        assert enforcing.row(name).enforced == 0


@pytest.mark.parametrize(
    ("way", "expect"),
    [
        ("exec_memory", Expect(memfd=False)),
        ("exec_deleted", Expect(deleted=False)),
        ("exec_fork", Expect(temporary=False)),  # pytest's directories lie below /tmp
        ("exec_fork", Expect(uids=(NOBODY,))),
        pytest.param("fork", Expect(uids=()), marks=forks_die),
        pytest.param("fork", Expect(depth=0), marks=forks_die),
    ],
)
def test_each_rule_alone(programs: Programs, name: str, way: str, expect: Expect) -> None:
    mark = programs.path("mark", f"mark{name}")
    with opened([killing(name, expect)]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, way, "50", str(mark))
        assert app.fact("attempts") == _did(50, killed=True)
        assert enforcing.row(name).enforced == 50


def test_each_expected_user_is_expected(programs: Programs, name: str) -> None:
    """Whichever of them comes first, whatever a reload makes of the list."""
    mark = programs.path("mark", f"mark{name}")
    with opened([killing(name, Expect(uids=(0,)))]) as enforcing, enforcing.polled():
        killed = 0
        for users in ((NOBODY, 0), (NOBODY,), (0, NOBODY), (0,), (), (NOBODY, 0)):
            enforcing.capture.apply([killing(name, Expect(uids=users))])
            app = programs.start("attempts", name, "exec_fork", "20", str(mark))
            assert app.fact("attempts") == _did(20, killed=0 not in users), users
            app.release()
            killed += 0 if 0 in users else 20
            assert enforcing.row(name).enforced == killed


def test_an_image_below_a_closed_directory_is_not_temporary(programs: Programs, name: str) -> None:
    """Where only root may write."""
    directory = Path("/usr/lib") / f"kwtest{name}"
    directory.mkdir()
    try:
        kept = shutil.copy(programs.path("mark", f"mark{name}"), directory / "mark")
        with opened([killing(name, Expect(temporary=False))]) as enforcing, enforcing.polled():
            app = programs.start("attempts", name, "exec_fork", "20", str(kept))
            assert app.fact("attempts") == _did(20, killed=False)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("deep", [30, 70])
def test_an_image_is_temporary_however_deep_below_the_open_directory(programs: Programs, name: str, deep: int) -> None:
    """All that lie between are closed."""
    top = Path("/usr/lib") / f"kwtest{name}"
    directory = top.joinpath(*["d"] * deep)
    directory.mkdir(parents=True)
    try:
        kept = shutil.copy(programs.path("mark", f"mark{name}"), directory / "mark")
        watch = killing(name, Expect(temporary=False))
        for mode, killed in ((0o755, deep > 64), (0o1777, True)):
            top.chmod(mode)
            with opened([watch]) as enforcing, enforcing.polled():
                app = programs.start("attempts", name, "exec_fork", "20", str(kept))
                assert app.fact("attempts") == _did(20, killed=killed)
    finally:
        shutil.rmtree(top)


def test_a_script_is_judged_by_its_interpreter(programs: Programs, name: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{SHELL}\nprintf x >&9\n")
    script.chmod(0o755)
    for expected, killed in ((SHELL, False), (PYTHON, True)):
        with opened([killing(name, Expect(executables=(expected,)))]) as enforcing, enforcing.polled():
            app = programs.start("attempts", name, "exec_fork", "20", str(script))
            assert app.fact("attempts") == _did(20, killed=killed)


def test_each_of_two_thousand_expected_files_is_found(programs: Programs, name: str, tmp_path: Path) -> None:
    """Eight watches expect all that a device may expect; the files change three times, then all are named anew.

    What was named before takes room until somebody else needs it, so what is named goes round the whole table.
    """
    content = programs.path("mark", f"mark{name}").read_bytes()
    files = [tmp_path / f"mark{number}" for number in range(8 * 256)]
    parts = [tuple(str(file) for file in files[at : at + 256]) for at in range(0, len(files), 256)]
    watches = [killing(f"{name}{number}", Expect(executables=part)) for number, part in enumerate(parts)]

    def tell(watch: int, file: str) -> dict[str, object]:
        app = programs.start("attempts", f"{name}{watch}", "exec_fork", "3", file)
        told = app.fact("attempts")
        app.release()
        return told

    with opened([]) as enforcing, enforcing.polled():
        for _ in range(4):
            for file in files:
                file.write_bytes(content)
                file.chmod(0o755)
            enforcing.capture.apply(watches)
            for watch, part in enumerate(parts):
                for path in (part[0], part[100], part[255]):
                    assert tell(watch, path) == _did(3, killed=False), path
                assert tell(watch, parts[watch - 1][7]) == _did(3, killed=True), "another watch expects it"


def test_a_replaced_binary_is_not_the_expected_one(programs: Programs, name: str, tmp_path: Path) -> None:
    """Another file in its place, or other content in the same file: neither runs before a reload, then both do."""
    mark = Path(shutil.copy(programs.path("mark", f"mark{name}"), tmp_path / "mark"))
    content = mark.read_bytes()
    watch = killing(name, Expect(executables=(str(mark),)))
    with opened([watch]) as enforcing:

        def attempts() -> dict[str, object]:
            app = programs.start("attempts", name, "exec_fork", "10", str(mark))
            told = app.fact("attempts")
            app.release()
            return told

        assert attempts() == _did(10, killed=False)
        other = tmp_path / "other"
        other.write_bytes(content)
        other.chmod(0o755)
        other.rename(mark)
        assert attempts() == _did(10, killed=True)
        enforcing.capture.apply([watch])
        assert attempts() == _did(10, killed=False)
        mark.write_bytes(content)
        assert attempts() == _did(10, killed=True)
        enforcing.capture.apply([watch])
        assert attempts() == _did(10, killed=False)
        mark.unlink()
        enforcing.capture.apply([watch])
        mark.write_bytes(content)
        mark.chmod(0o755)
        assert attempts() == _did(10, killed=True), "it was not there at the reload"


@forks_die
def test_the_fork_that_exceeds_the_limit_dies(programs: Programs, name: str) -> None:
    """Of a root that forks five children which stay, three live; when those are gone there is room again."""
    with opened([killing(name, Expect(child_processes=3))]) as enforcing, enforcing.polled():
        app = programs.start("family", name, "5")
        eventually(lambda: enforcing.row(name).spawned == 5, "five forks")
        eventually(lambda: len(app.facts("child")) == 3, "three children")
        row = enforcing.row(name)
        assert (row.enforced, row.alive, row.peak) == (2, 3, 4)
        app.release()
        eventually(lambda: enforcing.row(name).alive == 0, "all to end")
        again = programs.start("family", name, "3")
        again.fact("child", 3)
        assert enforcing.row(name).enforced == 2


@forks_die
def test_no_child_within_the_limit_is_killed_for_the_dying_ones(programs: Programs, name: str) -> None:
    """Forks over the limit come all the time; one that is within it lives although killed ones are not buried yet."""
    with opened([killing(name, Expect(child_processes=1))]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, "fork", str(COUNT))
        told = app.fact("attempts")
        row = enforcing.row(name)
        assert told["bytes"] + told["killed"] == COUNT
        assert told["bytes"] >= COUNT // 16, "the first of each sixteen at least"
        assert row.enforced == told["killed"]
        assert row.alive == 0


@forks_die
def test_forks_beyond_the_rate_die(programs: Programs, name: str) -> None:
    with opened([killing(name, Expect(forks_per_minute=30))]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, "fork", "100")
        told = app.fact("attempts")
        assert (told["bytes"], told["killed"]) == (30, 70)
        assert enforcing.row(name).enforced == 70


def test_depth_is_counted_from_the_root(programs: Programs, name: str) -> None:
    """The child runs, what it forks does not."""
    with opened([killing(name, Expect(depth=1))]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, "exec_orphan", "50", str(programs.path("mark", f"mark{name}")))
        assert app.fact("attempts")["bytes"] == 0
        assert enforcing.row(name).enforced == 50


def test_a_dry_run_kills_nobody(programs: Programs, name: str) -> None:
    watch = msgspec.structs.replace(killing(name, Expect(child_processes=0)), enforce="dry-run")
    with opened([watch]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, "fork", "100")
        assert app.fact("attempts") == _did(100, killed=False)
        row = enforcing.row(name)
        assert (row.enforced, row.would_enforce) == (0, 100)


def test_a_root_is_never_killed(programs: Programs, name: str) -> None:
    """Whatever it executes and whoever it runs as, on behalf of its own watch."""
    expect = Expect(executables=(), uids=(), memfd=False, deleted=False, temporary=False, depth=0)
    with opened([killing(name, expect)]) as enforcing, enforcing.polled():
        app = programs.start("root_exec", name, "/bin/true")
        app.fact("root")
        app.go()
        assert app.release() == 0
        row = enforcing.row(name)
        assert (row.root_starts, row.enforced) == (1, 0)


def test_a_watch_that_is_removed_hurts_nobody(built: Programs, name: str) -> None:
    """Its kin are strangers from then on, and so are the children they have."""
    watch = killing(name, Expect(child_processes=0))
    calm = killing(f"calm{name}", Expect(child_processes=0))
    with opened([watch, calm]) as enforcing:
        app = built.start("storm", name)
        app.fact("root")
        eventually(lambda: enforcing.row(name).enforced >= 20, "kills")
        enforcing.capture.apply([calm])
        app.go()
        app.fact("paused")
        app.go()
        app.go()
        app.fact("paused", 2)
        last = app.facts("turn")[-1]["pids"]
        assert all(pid > 0 for pid in last), "a child lived to fork a grandchild"


@forks_die
def test_too_many_kills_stop_enforcement_until_a_reload(programs: Programs, name: str) -> None:
    watch = killing(name, Expect(child_processes=0))
    settings = Enforcement(max_kills_per_minute=20)
    with opened([watch], settings) as enforcing:
        told = programs.start("attempts", name, "fork", "100").fact("attempts")
        assert told["killed"] == 20
        row = enforcing.row(name)
        assert (row.enforced, row.would_enforce) == (20, 80)
        assert enforcing.capture.enforcement_state() == "stopped by the breaker"
        programs.start("attempts", name, "fork", "100").fact("attempts")
        assert enforcing.row(name).enforced == 20, "it stays tripped"
        enforcing.capture.enforce(MANY)
        enforcing.capture.apply([watch])
        assert enforcing.capture.enforcement_state() == "on"
        assert programs.start("attempts", name, "fork", "100").fact("attempts") == _did(100, killed=True)


@forks_die
@pytest.mark.parametrize(("fail", "children", "killed"), [("closed", 1, 4), ("open", 5, 0)])
def test_who_cannot_be_followed(programs: Programs, name: str, fail: str, children: int, killed: int) -> None:
    """With the table full after one child of five: killed where enforcement fails closed, let go where it is open."""
    settings = msgspec.convert({"max_kills_per_minute": 100_000, "fail": fail}, Enforcement)
    watches = [killing(name, Expect(depth=9)), Watch(name=f"full{name}", kind="process", value=f"full{name}")]
    with opened(watches, settings, CaptureTable(max_processes=64)) as enforcing, enforcing.polled():
        programs.start("family", f"full{name}", "61").fact("child", 61)
        app = programs.start("family", name, "5")
        app.fact("child", children)
        eventually(lambda: enforcing.row(name).enforced == killed, f"{killed} kills")
        row = enforcing.row(name)
        assert (row.spawned, row.alive) == (1, 1)
        app.release()
        assert len(app.facts("child")) == children


def test_python_and_its_ways_to_start_programs(programs: Programs, name: str) -> None:
    """By subprocess, os.system and posix_spawn, from a copy of the interpreter."""
    code = """
import os, subprocess, sys
reading, writing = os.pipe()
os.dup2(writing, 9, inheritable=True)
os.close(writing)
outcomes = [subprocess.run([sys.argv[1]], pass_fds=[9]).returncode for _ in range(20)]
outcomes += [os.system(sys.argv[1]) for _ in range(20)]
for _ in range(20):
    pid = os.posix_spawn(sys.argv[1], ["mark"], os.environ)
    outcomes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os.close(9)
print(len(os.read(reading, 100)), sum(outcome != 0 for outcome in outcomes))
"""
    mark = programs.path("mark", f"mark{name}")
    interpreter = Path(shutil.copy(PYTHON, programs.directory / name))
    for expected, result in (((SHELL,), "0 60"), ((SHELL, str(mark)), "60 0")):
        with opened([killing(name, Expect(executables=expected))]) as enforcing, enforcing.polled():
            done = subprocess.run(
                [interpreter, "-c", code, mark],
                env=os.environ | {"PYTHONHOME": sys.base_prefix},
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.strip() == result

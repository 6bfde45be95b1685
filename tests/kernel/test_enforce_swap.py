"""Enforcement by other programs: the next version's take over, and those of a kernel that only signals the current."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.core import PROGRAMS, CoreCapture
from monitor.engine import Engine
from monitor.engine.lines import Enforced, decode
from monitor.expect import Expect
from monitor.schema import Capture as CaptureTable
from monitor.schema import Enforcement
from tests.contract.conftest import eventually
from tests.kernel.enforcing import MANY, SIGNALS_CHILDREN, forks_die, killing, leaves_forks, opened
from tests.kernel.follow import poll

if TYPE_CHECKING:
    from monitor.detect.snapshot import WatchSnapshot
    from tests.contract.conftest import Programs

ROOT = Path(__file__).resolve().parents[2]
COUNT = 20_000


@pytest.fixture(scope="module")
def without_signal_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs as a kernel without bpf_send_signal_task() loads them: they look for what is not there."""
    if not SIGNALS_CHILDREN:
        return PROGRAMS
    if shutil.which("clang") is None:
        pytest.skip("no compiler here to make programs that look for another function")
    made = tmp_path_factory.mktemp("without") / "kinwatch.bpf.o"
    flags = runpy.run_path(str(ROOT / "build" / "ebpf.py"))["flags"]()
    flags.append("-Dbpf_send_signal_task=bpf_send_signal_nobody")
    subprocess.run(["clang", *flags, "-c", "ebpf/kinwatch.bpf.c", "-o", str(made)], cwd=ROOT, check=True)
    return made


def _version(programs: Programs, version: int) -> Path:
    path = programs.directory / f"version{version}.o"
    path.write_bytes(PROGRAMS.read_bytes() + b"\0" * version)
    return path


@forks_die
def test_the_next_version_goes_on_killing_and_counts_nothing_twice(pins: str, programs: Programs, name: str) -> None:
    """Four versions in a row while children are forked: none of them runs, each is told and counted once."""
    watches = [killing(name, Expect(child_processes=0))]
    table = CaptureTable(ring_bytes=1 << 24, network=False)
    lines: list[bytes] = []
    told: dict[str, object] = {}
    snapshots: list[WatchSnapshot] = []
    with Engine() as engine:
        capture = CoreCapture(engine, watches, table, pins=pins, enforcing=MANY)
        capture.start()
        app = programs.start("attempts", name, "fork", str(COUNT))
        capture.close(keep=True)
    for version in (1, 2, 3):
        with Engine() as engine:
            capture = CoreCapture(
                engine, watches, table, pins=pins, programs=_version(programs, version), enforcing=MANY
            )
            try:
                assert capture.origin == "swapped"
                capture.start()
                reader = threading.Thread(target=poll, args=(capture, engine, lines))
                reader.start()
                try:
                    if version == 3:
                        told = app.fact("attempts")
                finally:
                    capture.stop()
                    reader.join()
                capture.drain()
                lines += engine.take().lines.splitlines()
                capture.commit()
                snapshots.append(capture.snapshot(None, 0).watches[0])
            finally:
                capture.close(keep=True)
    assert told == {"fact": "attempts", "bytes": 0, "killed": COUNT, "failed": 0}
    row = snapshots[-1]
    assert (row.enforced, row.spawned, row.exits, row.alive) == (COUNT, COUNT, COUNT, 0)
    killed = [line.process_id for line in map(decode, lines) if isinstance(line, Enforced)]
    assert len(set(killed)) == len(killed) == COUNT


@leaves_forks
@pytest.mark.parametrize("way", ["exec_fork", "exec_vfork", "exec_thread", "exec_spawn"])
def test_a_child_that_the_kernel_cannot_signal_executes_nothing(
    programs: Programs, without_signal_task: Path, name: str, way: str
) -> None:
    """It runs on until user space has killed it, and its exec is its end if that comes first."""
    mark = programs.path("mark", f"mark{name}")
    with opened([killing(name, Expect(child_processes=0))], programs=without_signal_task) as enforcing:
        with enforcing.polled():
            app = programs.start("attempts", name, way, "200", str(mark))
            assert app.fact("attempts") == {"fact": "attempts", "bytes": 0, "killed": 200, "failed": 0}
            assert enforcing.row(name).enforced == 200
        told = [line for line in enforcing.lines() if isinstance(line, Enforced)]
    assert len(told) == 200
    assert all(line.delegated and line.action == "kill" for line in told)


@leaves_forks
def test_a_child_that_the_kernel_cannot_signal_is_killed_by_user_space(
    programs: Programs, without_signal_task: Path, name: str
) -> None:
    """Children that stay and execute nothing are gone soon; a stranger's stay."""
    watch = killing(name, Expect(child_processes=2))
    with opened([watch], programs=without_signal_task) as enforcing, enforcing.polled():
        stranger = programs.start("family", f"not{name}", "5")
        stranger.fact("child", 5)
        app = programs.start("family", name, "5")
        eventually(lambda: enforcing.row(name).exits == 3, "three of five to be killed")
        row = enforcing.row(name)
        assert (row.enforced, row.alive, row.spawned) == (3, 2, 5)
        assert all(Path(f"/proc/{fact['pid']}/exe").exists() for fact in stranger.facts("child")), (
            "none of them is hurt"
        )
        app.release()
        stranger.release()


@leaves_forks
def test_nobody_is_killed_for_a_watch_that_is_gone(programs: Programs, without_signal_task: Path, name: str) -> None:
    """What user space was asked to kill is let go when its watch has been removed before it came to it."""
    calm = killing(f"calm{name}", Expect(child_processes=0))
    watches = [killing(name, Expect(child_processes=2)), calm]
    with opened(watches, programs=without_signal_task) as enforcing:
        app = programs.start("family", name, "5")  # nobody drains: the records wait in the ring
        app.fact("child", 5)
        enforcing.capture.apply([calm])
        with enforcing.polled():
            pids = [fact["pid"] for fact in app.facts("child")]
            assert all(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2] != "Z" for pid in pids)
        app.release()


@leaves_forks
def test_the_breaker_spares_those_left_to_user_space(programs: Programs, without_signal_task: Path, name: str) -> None:
    watch = killing(name, Expect(child_processes=0))
    once = Enforcement(max_kills_per_minute=1)
    with opened([watch], once, programs=without_signal_task) as enforcing, enforcing.polled():
        app = programs.start("family", name, "6")
        app.fact("child", 5)
        assert enforcing.row(name).enforced == 1
        app.release()

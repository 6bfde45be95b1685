"""Kernels that skip a hook: a second hook does what the first would have done, and nothing that it has done.

The kernel here skips none. So the programs are made so that the first hooks see only part of what happens.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from monitor.capture.core import PROGRAMS
from monitor.engine.lines import Enforced, Exec, Exit, Fork, Root
from monitor.expect import Expect
from monitor.schema import Capture as CaptureTable
from monitor.watch import Watch
from tests.contract.conftest import eventually
from tests.kernel.enforcing import Enforcing, forks_die, killing, opened

if TYPE_CHECKING:
    from monitor.engine.lines import Line
    from tests.contract.conftest import Programs

ROOT = Path(__file__).resolve().parents[2]
COUNT = 200
PROCESSES = CaptureTable(network=False)
IMAGES = 20
SEES = {"everything": None, "every second event": 2, "nothing": 0}


@pytest.fixture(scope="module", params=SEES)
def skipping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs whose first hooks see what the parameter says."""
    sees = SEES[request.param]
    if sees is None:
        return PROGRAMS
    if shutil.which("clang") is None:
        pytest.skip("no compiler here to make programs that skip")
    made = tmp_path_factory.mktemp("skipping") / "kinwatch.bpf.o"
    flags = runpy.run_path(str(ROOT / "build" / "ebpf.py"))["flags"]()
    words = ["clang", *flags, f"-DSEES={sees}", "-c", "tests/ebpf/skipping.bpf.c", "-o", str(made)]
    subprocess.run(words, cwd=ROOT, check=True)
    return made


def _watch(name: str) -> Watch:
    return Watch(name=name, kind="process", value=name)


def _told(enforcing: Enforcing) -> Counter[type[Line]]:
    """How many lines of each kind; no process's beginning, end or image is told twice."""
    lines = enforcing.lines()
    for kind in (Root, Fork, Exit, Enforced):
        told = Counter(line.process_id for line in lines if isinstance(line, kind))
        assert set(told.values()) <= {1}, f"{kind.__name__} of a process, twice"
    return Counter(map(type, lines))


@pytest.mark.parametrize("way", ["exec_fork", "exec_vfork", "exec_thread", "exec_spawn"])
def test_every_child_and_its_image_are_told_and_counted_once(
    programs: Programs, skipping: Path, name: str, way: str
) -> None:
    mark = programs.path("mark", f"mark{name}")
    with opened([_watch(name)], table=PROCESSES, programs=skipping, paired=True) as enforcing:
        with enforcing.polled():
            app = programs.start("attempts", name, way, str(COUNT), str(mark))
            stranger = programs.start("attempts", f"not{name}", way, str(COUNT), str(mark))
            app.fact("attempts")
            stranger.fact("attempts")
            eventually(lambda: enforcing.row(name).exits == COUNT, "the last exit to be counted")
            app.release()
            eventually(lambda: enforcing.row(name).root_exits == 1, "the root's exit to be counted")
            row = enforcing.row(name)
        told = _told(enforcing)
        assert {stage: count for stage, count in enforcing.lost().items() if count} == {}
    assert (row.spawned, row.execs, row.exits, row.alive) == (COUNT, COUNT, COUNT, 0)
    assert (row.root_starts, row.root_exits, row.roots) == (1, 1, 0)
    assert (told[Root], told[Fork], told[Exec], told[Exit]) == (1, COUNT, COUNT, COUNT + 1)


def test_every_image_of_one_process_is_told_once(programs: Programs, skipping: Path, name: str) -> None:
    with opened([_watch(name)], table=PROCESSES, programs=skipping, paired=True) as enforcing:
        with enforcing.polled():
            app = programs.start("exec_chain", name, str(IMAGES))
            for image in range(1, IMAGES):
                app.fact("image", image)
                app.go()
            app.fact("image", IMAGES)
            assert enforcing.row(name).execs == IMAGES
            app.release()
        assert _told(enforcing)[Exec] == IMAGES


def test_a_script_is_told_by_its_interpreter(programs: Programs, skipping: Path, name: str, tmp_path: Path) -> None:
    """The second hook cannot tell a script's name from an image's: its lines do without, and lie about none."""
    script = tmp_path / f"script{name}"
    script.write_text("#!/bin/sh\nprintf x >&9\n")
    script.chmod(0o755)
    with opened([_watch(name)], table=PROCESSES, programs=skipping, paired=True) as enforcing:
        with enforcing.polled():
            app = programs.start("attempts", name, "exec_fork", str(IMAGES), str(script))
            assert app.fact("attempts") == {"fact": "attempts", "bytes": IMAGES, "killed": 0, "failed": 0}
            app.release()
            eventually(lambda: enforcing.row(name).root_exits == 1, "the root's exit to be counted")
        told = Counter((line.exe, line.script) for line in enforcing.lines() if isinstance(line, Exec))
    shell = str(Path("/bin/sh").resolve())
    assert told.keys() <= {(shell, str(script)), (shell, msgspec.UNSET)}
    assert told.total() == IMAGES
    if skipping == PROGRAMS:
        assert told[shell, str(script)] == IMAGES


@forks_die
def test_no_child_too_many_runs(programs: Programs, skipping: Path, name: str) -> None:
    with opened(
        [killing(name, Expect(child_processes=0))], table=PROCESSES, programs=skipping, paired=True
    ) as enforcing:
        with enforcing.polled():
            app = programs.start("attempts", name, "fork", str(COUNT))
            assert app.fact("attempts") == {"fact": "attempts", "bytes": 0, "killed": COUNT, "failed": 0}
            row = enforcing.row(name)
            assert (row.enforced, row.spawned, row.exits, row.alive) == (COUNT, COUNT, COUNT, 0)
        assert _told(enforcing)[Enforced] == COUNT


@pytest.mark.parametrize("way", ["exec_fork", "exec_thread"])
def test_no_unexpected_image_runs(programs: Programs, skipping: Path, name: str, way: str) -> None:
    mark = programs.path("mark", f"mark{name}")
    with opened(
        [killing(name, Expect(executables=("/bin/sh",)))], table=PROCESSES, programs=skipping, paired=True
    ) as enforcing:
        with enforcing.polled():
            app = programs.start("attempts", name, way, str(COUNT), str(mark))
            assert app.fact("attempts") == {"fact": "attempts", "bytes": 0, "killed": COUNT, "failed": 0}
            assert enforcing.row(name).enforced == COUNT
        assert _told(enforcing)[Enforced] == COUNT


def test_who_cannot_be_followed_is_told_once(programs: Programs, name: str) -> None:
    """With the table full there is no row that the second hook could know it from."""
    with opened([_watch(name)], table=CaptureTable(max_processes=64), paired=True) as enforcing, enforcing.polled():
        programs.start("family", name, "70").fact("child", 70)
        assert enforcing.row(name).spawned == 63
        assert enforcing.lost()["table_full"] == 7

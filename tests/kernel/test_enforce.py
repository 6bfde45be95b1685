"""Who breaks an expectation of a watch that kills dies before its first instruction; nobody else does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from monitor.expect import Expect
from tests.kernel.enforcing import killing, opened

if TYPE_CHECKING:
    from tests.contract.conftest import Programs

COUNT = 10_000 if os.environ.get("KINWATCH_LONG") == "1" else 500
FORKS = ("fork", "vfork", "clone_vm", "clone3", "namespace", "thread")
EXECS = ("exec_fork", "exec_vfork", "exec_spawn", "exec_thread", "exec_memory", "exec_deleted", "exec_traced")
SHELL = os.path.realpath("/bin/sh")


@pytest.mark.parametrize("way", FORKS)
def test_a_child_too_many_never_runs(programs: Programs, name: str, way: str) -> None:
    """Not one byte comes of the forks of a watch without children; beside it the same forks of a stranger do all."""
    with opened([killing(name, Expect(child_processes=0))]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, way, str(COUNT))
        stranger = programs.start("attempts", f"not{name}", way, str(COUNT))
        assert app.fact("attempts") == {"fact": "attempts", "bytes": 0, "killed": COUNT, "failed": 0}
        assert stranger.fact("attempts") == {"fact": "attempts", "bytes": COUNT, "killed": 0, "failed": 0}
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
        assert app.fact("attempts") == {"fact": "attempts", "bytes": 0, "killed": COUNT, "failed": 0}
        assert stranger.fact("attempts") == {"fact": "attempts", "bytes": COUNT, "killed": 0, "failed": 0}
        assert enforcing.row(name).enforced == COUNT

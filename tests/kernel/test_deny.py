"""Forks that this kernel cannot kill and can refuse: before 6.13, with the BPF LSM. tests/vm boots such a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from monitor.engine.lines import Enforced, Fork
from monitor.expect import Expect
from monitor.schema import Capture as CaptureTable
from monitor.schema import Enforcement
from monitor.watch import Watch
from tests.contract.conftest import eventually
from tests.kernel.enforcing import MANY, REFUSES_FORKS, killing, opened

if TYPE_CHECKING:
    from tests.contract.conftest import Programs

pytestmark = pytest.mark.skipif(
    not REFUSES_FORKS, reason="this kernel has no BPF LSM, or kills a forked child before it runs: it refuses no fork"
)
COUNT = 200


def _did(count: int, *, refused: bool) -> dict[str, object]:
    return {"fact": "attempts", "bytes": 0 if refused else count, "killed": 0, "failed": count if refused else 0}


@pytest.mark.parametrize("way", ["fork", "vfork", "clone_vm", "clone3", "namespace", "thread"])
def test_a_child_too_many_is_refused(programs: Programs, name: str, way: str) -> None:
    """There is no child to tell of: each line is of the root that wanted one. A stranger's forks all do."""
    with opened([killing(name, Expect(child_processes=0))]) as enforcing:
        with enforcing.polled():
            app = programs.start("attempts", name, way, str(COUNT))
            stranger = programs.start("attempts", f"not{name}", way, str(COUNT))
            assert app.fact("attempts") == _did(COUNT, refused=True)
            assert stranger.fact("attempts") == _did(COUNT, refused=False)
            row = enforcing.row(name)
            assert (row.enforced, row.would_enforce, row.spawned, row.alive) == (COUNT, 0, 0, 0)
        told = [line for line in enforcing.lines() if isinstance(line, Enforced)]
        assert {(line.action, line.reason, line.pid) for line in told} == {("deny", "child_processes", app.pid)}
        assert len(told) == COUNT
        assert not any(isinstance(line, Fork) for line in enforcing.lines())


@pytest.mark.parametrize(
    ("expect", "room"), [(Expect(uids=()), 0), (Expect(depth=0), 0), (Expect(forks_per_minute=30), 30)]
)
def test_each_rule_alone(programs: Programs, name: str, expect: Expect, room: int) -> None:
    with opened([killing(name, expect)]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, "fork", "100")
        assert app.fact("attempts") == {"fact": "attempts", "bytes": room, "killed": 0, "failed": 100 - room}
        row = enforcing.row(name)
        assert (row.enforced, row.spawned) == (100 - room, room)


def test_there_is_room_again_when_a_child_has_ended(programs: Programs, name: str) -> None:
    """Sixteen are forked at once, then waited for."""
    with opened([killing(name, Expect(child_processes=16))]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, "fork", str(COUNT))
        assert app.fact("attempts") == _did(COUNT, refused=False)
        assert enforcing.row(name).enforced == 0


def test_who_cannot_be_followed_is_not_made(programs: Programs, name: str) -> None:
    """With the table full, where enforcement fails closed."""
    settings = msgspec.convert({"max_kills_per_minute": 100_000, "fail": "closed"}, Enforcement)
    watches = [killing(name, Expect(depth=9)), Watch(name=f"full{name}", kind="process", value=f"full{name}")]
    with opened(watches, settings, CaptureTable(max_processes=64)) as enforcing, enforcing.polled():
        programs.start("family", f"full{name}", "61").fact("child", 61)
        app = programs.start("family", name, "5")  # there is room for one, and it gives up at the first that is refused
        eventually(lambda: enforcing.row(name).enforced == 1, "the second child to be refused")
        eventually(lambda: enforcing.row(name).roots == 0, "the root to give up")
        assert len(app.facts("child")) == enforcing.row(name).spawned == 1


def test_a_dry_run_refuses_nothing(programs: Programs, name: str) -> None:
    watch = msgspec.structs.replace(killing(name, Expect(child_processes=0)), enforce="dry-run")
    with opened([watch]) as enforcing, enforcing.polled():
        app = programs.start("attempts", name, "fork", "100")
        assert app.fact("attempts") == _did(100, refused=False)
        row = enforcing.row(name)
        assert (row.enforced, row.would_enforce) == (0, 100)


def test_too_many_stop_enforcement_until_a_reload(programs: Programs, name: str) -> None:
    watch = killing(name, Expect(child_processes=0))
    with opened([watch], Enforcement(max_kills_per_minute=20)) as enforcing:
        told = programs.start("attempts", name, "fork", "100").fact("attempts")
        assert told == {"fact": "attempts", "bytes": 80, "killed": 0, "failed": 20}
        row = enforcing.row(name)
        assert (row.enforced, row.would_enforce) == (20, 80)
        assert enforcing.capture.enforcement_state() == "stopped by the breaker"
        enforcing.capture.enforce(MANY)
        enforcing.capture.apply([watch])
        assert programs.start("attempts", name, "fork", "100").fact("attempts") == _did(100, refused=True)

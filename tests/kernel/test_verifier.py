"""The kernel's verifier is done with every program quickly: a start is as long as its work.

Owns the reading of what it counted. Refuses to time anything: the number of instructions it looked at is a fact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.bench.hooks import facts_of
from tests.kernel.held import held

if TYPE_CHECKING:
    from tests.kernel.conftest import Daemons

MOST: Final = 40_000
"""Twice the largest program's. It looks at one in 20 to 50 ns, so this is a millisecond or two."""


def test_every_program_is_verified_quickly(daemons: Daemons) -> None:
    daemons.configure(
        '[[watch]]\nprocess = "kwverified"\nenforce = "kill"\n'
        "expect = { child_processes = 1, executables = [], depth = 2, forks_per_minute = 9, uids = [0] }\n"
        "[capture]\npackets = true\n"
    )
    ours = {program["name"]: program["id"] for program in held(daemons.start().pid, "prog")}
    assert {"on_fork", "on_exec", "on_exit", "on_state", "net_walk"} <= ours.keys()
    found = {name: facts_of(number).get("verified_insns") for name, number in ours.items()}
    if None in found.values():
        pytest.skip("this kernel does not say what its verifier did (before 5.16)")
    assert {name: looked for name, looked in found.items() if (looked or 0) > MOST} == {}

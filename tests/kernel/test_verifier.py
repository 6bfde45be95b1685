"""The kernel's verifier is done with every program quickly: a start is as long as its work.

Owns the reading of what it counted. Refuses to time anything: the number of instructions it looked at is a fact.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.kernel.held import held

if TYPE_CHECKING:
    from tests.kernel.conftest import Daemons

MOST: Final = 40_000
"""Twice the largest program's. It looks at one in 20 to 50 ns, so this is a millisecond or two."""
BPF_PROG_GET_FD_BY_ID: Final = 13
CALL: Final = {"x86_64": 321, "aarch64": 280}[platform.machine()]  # bpf(2)


def _looked_at(program: int) -> int | None:
    """Instructions of a program that the verifier looked at, by its id; None: the kernel (before 5.16) does not say."""
    attributes = ctypes.create_string_buffer(program.to_bytes(4, "little") + bytes(12), 16)
    fd = ctypes.CDLL(None, use_errno=True).syscall(CALL, BPF_PROG_GET_FD_BY_ID, attributes, 16)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        told = re.search(r"^verified_insns:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    finally:
        os.close(fd)
    return int(told[1]) if told else None


def test_every_program_is_verified_quickly(daemons: Daemons) -> None:
    daemons.configure(
        '[[watch]]\nprocess = "kwverified"\nenforce = "kill"\n'
        "expect = { child_processes = 1, executables = [], depth = 2, forks_per_minute = 9, uids = [0] }\n"
        "[capture]\npackets = true\n"
    )
    ours = {program["name"]: program["id"] for program in held(daemons.start().pid, "prog")}
    assert {"on_fork", "on_exec", "on_exit", "on_state", "net_walk"} <= ours.keys()
    found = {name: _looked_at(number) for name, number in ours.items()}
    if None in found.values():
        pytest.skip("this kernel does not say what its verifier did (before 5.16)")
    assert {name: looked for name, looked in found.items() if (looked or 0) > MOST} == {}

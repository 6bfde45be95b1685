"""What older verifiers refuse of a program's shape, seen without such a kernel.

Owns the walk over a function's instructions as check_cfg() of Linux 6.1 does it. Refuses to load anything.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest

CAPTURE = Path(__file__).resolve().parents[2] / "monitor" / "capture"
JUMP = re.compile(r"goto \+?(-?)(0x)?([0-9a-f]+)")


def _functions(program: Path) -> dict[str, dict[int, str]]:
    """By name: the instructions by their number."""
    listing = subprocess.run(
        ["llvm-objdump", "-d", "--no-show-raw-insn", program], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, dict[int, str]] = {}
    instructions: dict[int, str] = {}
    for line in listing.splitlines():
        head = re.match(r"[0-9a-f]+ <(\w+)>:", line)
        body = re.match(r"\s+(\d+):\s+(.*)", line)
        if head and not head[1].startswith("LBB"):
            instructions = found[head[1]] = {}
        elif body:
            instructions[int(body[1])] = body[2]
    return found


def _edges(instructions: dict[int, str], after: dict[int, int], at: int) -> list[tuple[int, bool]]:
    """Where it goes from there, in the verifier's order, and whether a loop may close that way."""
    text = instructions[at]
    jump = JUMP.search(text)
    if text.startswith("exit") or (not jump and at not in after):
        return []
    if not jump:
        return [(after[at], False)]
    target = at + 1 + int(jump[3], 16 if jump[2] else 10) * (-1 if jump[1] else 1)
    return [(after[at], True), (target, True)] if text.startswith("if") else [(target, True)]


def fallen_into(instructions: dict[int, str]) -> list[tuple[int, int]]:
    """Edges that close a loop by falling into its head: a "back-edge", and -EINVAL for the whole object."""
    order = sorted(instructions)
    after = dict(itertools.pairwise(order))
    explored: dict[int, bool] = {order[0]: False}
    path = [(order[0], iter(_edges(instructions, after, order[0])))]
    found = []
    while path:
        at, edges = path[-1]
        for target, may_close in edges:
            if target not in explored:
                explored[target] = False
                path.append((target, iter(_edges(instructions, after, target))))
                break
            if not explored[target] and not may_close:
                found.append((at, target))
        else:
            explored[at] = True
            path.pop()
    return found


@pytest.mark.parametrize("program", ["kinwatch.bpf.o", "net.bpf.o"])
def test_no_loop_is_fallen_into(program: str) -> None:
    functions = _functions(CAPTURE / program)
    assert len(functions) > 10
    assert {name: found for name, body in functions.items() if body and (found := fallen_into(body))} == {}


def test_a_loop_that_is_fallen_into_is_seen() -> None:
    """The shape that 6.1 refused: entered in its middle by a jump, its upper part falls into the head."""
    upper = {
        0: "r6 = 0",
        1: "goto +1 <f+0x18>",
        2: "r6 += 1",
        3: "r1 = r6",
        4: "if r1 != 32 goto -3 <f+0x10>",
        5: "exit",
    }
    assert fallen_into(upper) == [(2, 3)]
    plain = {0: "r6 = 0", 1: "r6 += 1", 2: "if r6 != 32 goto -2 <f+0x8>", 3: "exit"}
    assert fallen_into(plain) == []

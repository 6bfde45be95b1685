"""What runs showed: judged from the files that a machine left, kept, and told as docs/kernels.md.

Owns the page's columns and when a run has failed. Refuses to know machines and which tests were asked for.

An outcome is kept in a file of its own, with its commit and day, so that a page can be made of runs of several days:
all of them together take hours.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import msgspec

from tests.contract.conftest import CAPTURES

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS: Final = (*(f"contract, {capture}" for capture in CAPTURES), "kernel", "network", "engine")
SHOWN: Final = 6
"""Failures that a cell names."""
CELL: Final = 40
"""Characters of a cell; what is longer becomes a note."""
TIME_IS_UP: Final = 124
"""timeout's own status."""


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one run showed: a row of the page."""

    name: str
    version: str
    """As uname -r says; empty: there was no kernel to boot."""
    cells: dict[str, str]
    """By column."""
    failed: bool
    suite: str = ""
    """Which tests were asked for."""
    ran: str = ""
    """How many of them ran, in what time."""
    commit: str = ""
    day: str = ""


class Expected(msgspec.Struct, frozen=True):
    """What must be true of a run, else it has failed."""

    name: str
    best: str
    """The capture that `auto` has to take; empty: netlink or poll."""
    may_skip: tuple[str, ...]
    """Reasons, or parts of them, for which a test may be skipped there. Any other skip is a failure."""
    suite: str
    commit: str
    day: str


def unknown(expected: Expected, version: str, why: str, *, failed: bool = True) -> Outcome:
    """Of a run that could not be made. `failed`: whether that is a failure."""
    return Outcome(
        expected.name,
        version,
        dict.fromkeys(COLUMNS, f"unknown: {why}"),
        failed=failed,
        suite=expected.suite,
        commit=expected.commit,
        day=expected.day,
    )


def judge(expected: Expected, version: str, files: Path, status: int, took_s: float) -> Outcome:
    """From a run's doctor.json, tests.xml and output, and its exit status."""
    doctor = json.loads((files / "doctor.json").read_text() or "{}")
    taken = doctor.get("capture")
    right = taken == expected.best if expected.best else taken in {"netlink", "poll"}
    why = "; ".join(doctor.get("core_obstacles", ())) or doctor.get("reason", "doctor said nothing")
    why_no_bcc = "; ".join(doctor.get("bcc_obstacles", ())) or why
    cases = list(ET.parse(files / "tests.xml").getroot().iter("testcase")) if (files / "tests.xml").exists() else []  # noqa: S314 - our own file
    cells, failed = _cells(cases, expected.may_skip)
    for column in COLUMNS:
        if column not in cells:
            left_out = taken == "core" or expected.best == "bcc" or column == "engine"
            reason = why_no_bcc if column == "contract, bcc" else why
            cells[column] = "not asked for" if left_out else f"cannot: {reason}"
    if not right:
        cells[f"contract, {expected.best or 'netlink'}"] = f"failed: {taken} is taken here ({why})"
    asked = _asked((files / "output").read_text(errors="replace"))
    ran = f"{len(cases)} of {asked} in {took_s / 60:.0f} min"
    if status == TIME_IS_UP:
        ran += ", then its time was up"
    return Outcome(
        expected.name,
        version,
        cells,
        failed=failed or not right or len(cases) < asked or not cases,
        suite=expected.suite,
        ran=ran,
        commit=expected.commit,
        day=expected.day,
    )


def keep(outcome: Outcome, path: Path) -> None:
    """For a page that is made later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(outcome))


def kept(path: Path) -> Outcome | None:
    """The outcome of a run's last time; None: it has none."""
    return msgspec.json.decode(path.read_bytes(), type=Outcome) if path.exists() else None


def page(outcomes: list[Outcome], missing: list[str]) -> str:
    """docs/kernels.md. `missing`: the names of runs that have no outcome. Long cells are notes below the table."""
    notes: list[str] = []
    lines = [
        "# On which kernels it works",
        "",
        "Made by `make vm`: Debian's kernels under QEMU (emulated, 10 to 20 times slower than the processor), the",
        "tests as root inside. Which tests a row's suite is stands in tests/vm/kernels.toml. A cell says how many",
        "passed, which failed, and what was skipped for which reason; a skip for a reason that the row does not allow",
        "is a failure.",
        "",
        f"| kernel | version | suite | ran | {' | '.join(COLUMNS)} | commit, day |",
        f"|---|---|---|---|{'---|' * len(COLUMNS)}---|",
    ]
    for outcome in outcomes:
        cells = " | ".join(_short(outcome.cells[column], notes).replace("|", "\\|") for column in COLUMNS)
        lines.append(
            f"| {outcome.name} | {outcome.version} | {outcome.suite} | {outcome.ran} | {cells} "
            f"| {outcome.commit}, {outcome.day} |"
        )
    empty = " | ".join("unknown: not run" for _ in COLUMNS)
    lines += [f"| {name} | | | | {empty} | |" for name in missing]
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))] if notes else []
    return "\n".join([*lines, ""])


def _short(cell: str, notes: list[str]) -> str:
    """The cell, or its beginning and the number of its note."""
    head, colon, rest = cell.partition(": ")
    if len(cell) <= CELL or not colon:
        return cell
    if rest not in notes:
        notes.append(rest)
    return f"{head}, note {notes.index(rest) + 1}"


def _asked(output: str) -> int:
    """How many tests pytest selected."""
    found = re.search(r"collected (\d+) items?(?: / (\d+) deselected / (\d+) selected)?", output)
    return int(found[3] or found[1]) if found else 0


def _cells(cases: list[ET.Element], may_skip: tuple[str, ...]) -> tuple[dict[str, str], bool]:
    """By column: how many tests passed, which failed, how many were skipped and why; True: one has failed."""
    passed: dict[str, int] = {}
    failures: dict[str, list[str]] = {}
    skipped: dict[str, list[str]] = {}
    for case in cases:
        column = _column(case.get("classname", ""), case.get("name", ""))
        kinds = {child.tag: child.get("message", "") for child in case}
        if "failure" in kinds or "error" in kinds:
            failures.setdefault(column, []).append(case.get("name", ""))
        elif "skipped" not in kinds:
            passed[column] = passed.get(column, 0) + 1
        elif any(reason in kinds["skipped"] for reason in may_skip):
            skipped.setdefault(column, []).append(kinds["skipped"])
        else:
            failures.setdefault(column, []).append(f"{case.get('name', '')} (skipped: {kinds['skipped']})")
    cells = {}
    for column in {*passed, *failures, *skipped}:
        words = [f"{passed.get(column, 0)} passed"]
        if column in failures:
            names = failures[column]
            words.append(f"{len(names)} failed: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}")
        if column in skipped:
            words.append(f"{len(skipped[column])} skipped: {'; '.join(sorted(set(skipped[column])))}")
        cells[column] = ", ".join(words)
    return cells, bool(failures)


def _column(module: str, name: str) -> str:
    if module.startswith("tests.contract"):
        for capture in CAPTURES:
            if f"[{capture}" in name or f"-{capture}" in name:
                return f"contract, {capture}"
        return "contract, core"
    if module.startswith("tests.engine"):
        return "engine"
    return "network" if module.startswith("tests.net") else "kernel"

"""Run the suite on every kernel of kernels.toml, in virtual machines, two at a time, and write docs/kernels.md.

    PYTHONPATH=build python -m tests.vm.run [--quick] [--only NAME]... [--select PYTEST-WORDS]

Owns which tests run where and the page. Refuses to know how a machine is made. Exit code 1: something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import msgspec

import mirror
import portable
import recipe
from tests.contract.conftest import CAPTURES
from tests.vm import foreign, kernels, machine, root

HOST: Final = "x86_64"
HERE: Final = Path(__file__).resolve().parent
FOLDER: Final = root.CHECKOUT / ".cache" / "vm"
PAGE: Final = root.CHECKOUT / "docs" / "kernels.md"
AT_ONCE: Final = 2
"""One emulated machine keeps one processor busy."""
PATIENCE: Final = 30
"""How much longer a test waits there before it says that something hangs."""
QUICK: Final = ("tests/contract/test_lineage.py", "tests/contract/test_counts.py", "tests/kernel/test_takeover.py")
WHOLE: Final = ("tests/contract", "tests/kernel", "tests/net")
LIMIT_S: Final = {True: 600.0, False: 5400.0}
"""By whether it is the quick run."""
SELECTED: Final = {"core": "not bcc", "bcc": "bcc", "": "netlink or poll"}
"""What pytest runs, by the best capture that is possible there."""
COLUMNS: Final = (*(f"contract, {capture}" for capture in CAPTURES), "kernel", "network")
SHOWN: Final = 6
"""Failures that a cell names."""


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[kernel]]."""

    name: str
    suite: str
    package: str
    machine: str = HOST
    """As uname -m says."""


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[run]]."""

    name: str
    kernel: str
    core: bool
    bcc: bool = False
    """BCC and the kernel's headers are installed there, and it is what is asked for."""
    append: str = ""
    cgroup: str = "v2"
    hide_btf: bool = False
    quick: bool = False
    parts: tuple[str, ...] = ()
    """Names of parts, in place of the suite."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[part]]."""

    name: str
    tests: tuple[str, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kernels.toml."""

    kernel: list[Kernel]
    run: list[Run]
    part: list[Part] = []

    def words(self, run: Run) -> str:
        """What pytest is told to take of a run that has parts, else ""."""
        return shlex.join(test for part in self.part if part.name in run.parts for test in part.tests)


class Outcome(msgspec.Struct):
    """What one run showed."""

    run: Run
    version: str = ""
    cells: dict[str, str] = {}
    failed: bool = True


def main(words: list[str]) -> int:
    """Do what the flags say."""
    flags = argparse.ArgumentParser(prog="tests.vm.run", description=__doc__.partition("\n")[0])
    flags.add_argument("--quick", action="store_true", help="the quick kernels and tests only; writes no page")
    flags.add_argument("--only", action="append", default=[], metavar="NAME", help="runs of that name only")
    flags.add_argument("--select", default="", metavar="WORDS", help="for pytest, in place of the suite")
    asked = flags.parse_args(words)
    table = msgspec.convert(tomllib.loads((HERE / "kernels.toml").read_text()), Table)
    runs = [run for run in table.run if (not asked.quick or run.quick) and (not asked.only or run.name in asked.only)]
    if not runs:
        flags.error(f"no run of that name; there are: {', '.join(run.name for run in table.run)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = [kernel for kernel in table.kernel if any(run.kernel == kernel.name for run in runs)]
    machines = {kernel.name: kernel.machine for kernel in wanted}
    apts = {name: _apt(name, table) for name in sorted(set(machines.values()))}
    got = {kernel.name: _kernel(apts[kernel.machine], kernel) for kernel in wanted}
    images = {run.name: _image(run, got[run.kernel], apts[HOST], table) for run in runs if run.bcc}
    plain = {name: _plain(name) for name in {machines[run.kernel] for run in runs if not run.bcc}}
    select = " ".join(QUICK if asked.quick else WHOLE)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(
            pool.map(
                lambda run: _run(
                    run,
                    got[run.kernel],
                    images.get(run.name) or plain[machines[run.kernel]],
                    asked.select or table.words(run) or f"{select} -k '{SELECTED[_best(run)]}'",
                    machines[run.kernel],
                    quick=asked.quick,
                ),
                runs,
            )
        )
    page = _page(outcomes)
    print(page)
    if not asked.quick and not asked.only and not asked.select:
        PAGE.write_text(page)
    return int(any(outcome.failed for outcome in outcomes))


def _apt(architecture: str, table: Table) -> mirror.Apt:
    suites = [kernel.suite for kernel in table.kernel if kernel.machine == architecture]
    return mirror.Apt(FOLDER / f"apt-{architecture}", suites, portable.ARCHITECTURES[architecture])


def _plain(architecture: str) -> Path | str:
    """The root of a machine, or why there is none."""
    try:
        return root.image(FOLDER) if architecture == HOST else foreign.image(FOLDER, architecture)
    except (mirror.Unobtainable, recipe.RecipeFailed) as error:
        return str(error)


def _kernel(apt: mirror.Apt, kernel: Kernel) -> kernels.Kernel | str:
    """The kernel, or why there is none."""
    try:
        return kernels.obtain(apt, kernel.package, kernel.suite, FOLDER / "kernels")
    except mirror.Unobtainable as error:
        return str(error)


def _image(run: Run, kernel: kernels.Kernel | str, apt: mirror.Apt, table: Table) -> Path | str:
    """A root with BCC and the headers of this kernel, or why there is none."""
    if isinstance(kernel, str):
        return kernel
    suite = next(one.suite for one in table.kernel if one.name == run.kernel)
    try:
        return root.image(FOLDER, kernels.headers(apt, kernel, suite, FOLDER / "kernels"))
    except mirror.Unobtainable as error:
        return str(error)


def _run(  # noqa: PLR0913 - what a run is made of
    run: Run, kernel: kernels.Kernel | str, image: Path | str, select: str, architecture: str, *, quick: bool
) -> Outcome:
    if isinstance(kernel, str):
        return Outcome(run, cells=dict.fromkeys(COLUMNS, f"unknown: the kernel cannot be had ({kernel})"))
    if not isinstance(image, Path):
        return Outcome(run, cells=dict.fromkeys(COLUMNS, f"unknown: its root cannot be made ({image})"))
    files = FOLDER / "results" / "".join(letter if letter.isalnum() else "-" for letter in run.name)
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    command = (
        ".venv/bin/kinwatch doctor --json >/run/result/doctor.json; "
        f"KINWATCH_PATIENCE={PATIENCE} CI=1 .venv/bin/python -m pytest -q -o cache_dir=/tmp/pytest "
        f"--junitxml=/run/result/tests.xml {select}"
    )
    print(f"{run.name}: {kernel.version}", file=sys.stderr, flush=True)
    try:
        result = machine.run(
            kernel,
            image,
            command,
            files,
            append=run.append,
            cgroup=run.cgroup,
            hide_btf=run.hide_btf,
            timeout_s=LIMIT_S[quick],
            architecture=architecture,
            busybox=machine.BUSYBOX if architecture == HOST else foreign.busybox(image),
        )
    except machine.Broken as error:
        (files / "broken").write_text(str(error))
        return Outcome(
            run, kernel.version, dict.fromkeys(COLUMNS, f"unknown: the machine failed, see {files / 'broken'}")
        )
    outcome = _judged(run, kernel.version, files)
    print(
        f"{run.name}: {'FAILED' if outcome.failed else 'ok'} after {result.took_s:.0f} s", file=sys.stderr, flush=True
    )
    return outcome


def _best(run: Run) -> str:
    """The capture that `auto` has to take there: core, bcc, "" for what is left."""
    return "core" if run.core else "bcc" if run.bcc else ""


def _judged(run: Run, version: str, files: Path) -> Outcome:
    doctor = json.loads((files / "doctor.json").read_text() or "{}")
    taken = doctor.get("capture")
    core = taken == "core"
    expected = taken == _best(run) if _best(run) else taken in {"netlink", "poll"}
    why = "; ".join(doctor.get("core_obstacles", ())) or doctor.get("reason", "doctor said nothing")
    cells = _cells(files / "tests.xml")
    failed = not expected or any("failed" in cell for cell in cells.values()) or not cells
    for column in COLUMNS:
        if column not in cells:
            cells[column] = "not asked for" if core or run.bcc else f"cannot: {why}"
    if not expected:
        cells[f"contract, {_best(run) or 'netlink'}"] = f"failed: {taken} is taken here ({why})"
    return Outcome(run, version, cells, failed)


def _cells(file: Path) -> dict[str, str]:
    """By column: how many tests passed, which failed, how many were skipped and why."""
    passed: dict[str, int] = {}
    failures: dict[str, list[str]] = {}
    skipped: dict[str, list[str]] = {}
    if not file.exists():
        return {}
    for case in ET.parse(file).getroot().iter("testcase"):  # noqa: S314 - our own file
        column = _column(case.get("classname", ""), case.get("name", ""))
        kinds = {child.tag: child.get("message", "") for child in case}
        if "failure" in kinds or "error" in kinds:
            failures.setdefault(column, []).append(case.get("name", ""))
        elif "skipped" in kinds:
            skipped.setdefault(column, []).append(kinds["skipped"])
        else:
            passed[column] = passed.get(column, 0) + 1
    cells = {}
    for column in {*passed, *failures, *skipped}:
        words = [f"{passed.get(column, 0)} passed"]
        if column in failures:
            names = failures[column]
            words.append(f"{len(names)} failed: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}")
        if column in skipped:
            words.append(f"{len(skipped[column])} skipped: {'; '.join(sorted(set(skipped[column])))}")
        cells[column] = ", ".join(words)
    return cells


def _column(module: str, name: str) -> str:
    if module.startswith("tests.contract"):
        for capture in CAPTURES:
            if f"[{capture}" in name or f"-{capture}" in name:
                return f"contract, {capture}"
        return "contract, core"
    return "network" if module.startswith("tests.net") else "kernel"


def _page(outcomes: list[Outcome]) -> str:
    lines = [
        "# On which kernels it works",
        "",
        "Made by `make vm`: Debian's kernels under QEMU (emulated), the contract, kernel and network suites as root.",
        f"{datetime.now(UTC):%Y-%m-%d}.",
        "",
        f"| kernel | version | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
    ]
    for outcome in outcomes:
        cells = " | ".join(outcome.cells[column].replace("|", "\\|") for column in COLUMNS)
        lines.append(f"| {outcome.run.name} | {outcome.version} | {cells} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    os.chdir(root.CHECKOUT)
    sys.exit(main(sys.argv[1:]))

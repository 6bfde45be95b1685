"""Run the suite on the kernels of kernels.toml, in virtual machines, two at a time, and write docs/kernels.md.

    PYTHONPATH=build python -m tests.vm.run [--quick] [--only NAME]... [--whole] [--select WORDS] [--page]

Owns which tests run where. Refuses to know how a machine is made and how the page looks. Exit code 1: something failed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

import mirror
import portable
import recipe
from tests.vm import foreign, kernels, machine, results, root

HOST: Final = "x86_64"
"""The root of such a machine has the environment that is here; the others' is made for them."""
HERE: Final = Path(__file__).resolve().parent
FOLDER: Final = root.CHECKOUT / ".cache" / "vm"
PAGE: Final = root.CHECKOUT / "docs" / "kernels.md"
AT_ONCE: Final = 2
"""One emulated machine keeps one processor busy."""
PATIENCE: Final = 8
"""How much longer a test waits there before it says that something hangs."""
END_S: Final = 60
"""What a machine gets beyond its tests' time: to boot, to let an interrupted test clean up, to write its results."""
QUICK: Final = "quick"
WHOLE: Final = "whole"
"""Suites that a flag puts in place of the runs' own."""
SELECTED: Final = {"core": "not bcc", "bcc": "bcc", "": "netlink or poll"}
"""What pytest runs, by the best capture that is possible there."""


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[kernel]]."""

    name: str
    suite: str
    package: str
    machine: str = HOST
    """As uname -m says."""
    may_skip: tuple[str, ...] = ()
    """As results.Expected has it."""


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[suite.NAME]."""

    tests: tuple[str, ...]
    """Words for pytest."""
    limit_min: int
    """When what has not run by then is given up."""
    whole: bool = False
    """All of them are run, not only those that the best capture there is for."""


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[[run]]."""

    name: str
    kernel: str
    core: bool
    suite: str = "heart"
    bcc: bool = False
    """BCC and the kernel's headers are installed there, and it is what is asked for."""
    append: str = ""
    cgroup: str = "v2"
    hide_btf: bool = False
    quick: bool = False
    may_skip: tuple[str, ...] = ()
    """As results.Expected has it."""

    @property
    def best(self) -> str:
        """The capture that `auto` has to take there: core, bcc, "" for what is left."""
        return "core" if self.core else "bcc" if self.bcc else ""

    @property
    def files(self) -> Path:
        """Where its results lie, until it is run again."""
        return FOLDER / "results" / self._slug

    @property
    def kept(self) -> Path:
        """The outcome of its last run for the page."""
        return FOLDER / "outcomes" / f"{self._slug}.json"

    @property
    def _slug(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kernels.toml."""

    kernel: list[Kernel]
    suite: dict[str, Suite]
    run: list[Run]
    may_skip: tuple[str, ...]


def main(words: list[str]) -> int:
    """Do what the flags say."""
    flags = argparse.ArgumentParser(prog="tests.vm.run", description=__doc__.partition("\n")[0])
    flags.add_argument("--quick", action="store_true", help="the quick kernels and tests only; no page")
    flags.add_argument("--only", action="append", default=[], metavar="NAME", help="runs of that name only")
    flags.add_argument("--whole", action="store_true", help="every test: hours on each kernel")
    flags.add_argument("--select", default="", metavar="WORDS", help="for pytest, in place of the suite; no page")
    flags.add_argument("--page", action="store_true", help="run nothing: make the page of what ran last")
    asked = flags.parse_args(words)
    table = msgspec.convert(tomllib.loads((HERE / "kernels.toml").read_text()), Table)
    runs = [run for run in table.run if (not asked.quick or run.quick) and (not asked.only or run.name in asked.only)]
    if not runs:
        flags.error(f"no run of that name; there are: {', '.join(run.name for run in table.run)}")
    suite = QUICK if asked.quick else WHOLE if asked.whole else ""
    if not asked.page and not asked.select:
        _look_for_tests(table, {_suite(run, table, suite) for run in runs})
    outcomes = [] if asked.page else _run_all(runs, table, suite, asked.select)
    if asked.quick or asked.select:
        print(results.page(outcomes, []))
    else:
        known = {run.name: results.kept(run.kept) for run in table.run}
        page = results.page([row for row in known.values() if row], [name for name, row in known.items() if not row])
        PAGE.write_text(page)
        print(page)
    return int(any(outcome.failed for outcome in outcomes))


def _suite(run: Run, table: Table, instead: str) -> str:
    """The name of the run's suite; `instead`: of another in its place, unless the run's own is all that is for it."""
    return run.suite if table.suite[run.suite].whole else instead or run.suite


def _look_for_tests(table: Table, suites: set[str]) -> None:
    """Ends the program when a suite names tests that there are not: a machine would find that out after minutes."""
    for name in sorted(suites):
        words = [sys.executable, "-m", "pytest", "-q", "--collect-only", *table.suite[name].tests]
        found = subprocess.run(words, cwd=root.CHECKOUT, capture_output=True, text=True, check=False)
        if found.returncode:
            sys.exit(f"[suite.{name}] of kernels.toml: {found.stdout}{found.stderr}")


def _run_all(runs: list[Run], table: Table, suite: str, select: str) -> list[results.Outcome]:
    """`suite`: in place of the runs' own; `select`: words for pytest in place of a suite's, and nothing is kept."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = {kernel.name: kernel for kernel in table.kernel if any(kernel.name == run.kernel for run in runs)}
    apts = {name: _apt(name, table) for name in sorted({kernel.machine for kernel in wanted.values()})}
    with (FOLDER / "making").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who runs other kernels from this checkout makes the same images
        got = {name: _kernel(apts[kernel.machine], kernel) for name, kernel in wanted.items()}
        images = {run.name: _image(run, got[run.kernel], apts[HOST], table) for run in runs if run.bcc}
        plain = {name: _plain(name) for name in sorted({wanted[run.kernel].machine for run in runs if not run.bcc})}
    commit = _commit()

    def run_one(run: Run) -> results.Outcome:
        named = _suite(run, table, suite)
        tests = table.suite[named]
        kernel = wanted[run.kernel]
        image = images[run.name] if run.bcc else plain[kernel.machine]
        expected = results.Expected(
            run.name,
            run.best,
            table.may_skip + kernel.may_skip + run.may_skip,
            named,
            commit,
            f"{datetime.now(UTC):%Y-%m-%d}",
        )
        outcome = _run(run, expected, got[run.kernel], image, kernel.machine, suite=tests, select=select)
        if suite != QUICK and not select:
            results.keep(outcome, run.kept)
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(run_one, runs))


def _commit() -> str:
    """Of what is tested; "-dirty" after it: and changes that are not in it. The page itself is none."""
    words = ["git", "-C", str(root.CHECKOUT)]
    head = subprocess.run([*words, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = ["status", "--porcelain", "--", ".", f":!{PAGE.relative_to(root.CHECKOUT)}"]
    more = subprocess.run([*words, *changed], capture_output=True, text=True, check=False)
    return (head.stdout.strip() or "unknown") + "-dirty" * bool(more.stdout.strip())


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
    run: Run,
    expected: results.Expected,
    kernel: kernels.Kernel | str,
    image: Path | str,
    architecture: str,
    *,
    suite: Suite,
    select: str,
) -> results.Outcome:
    shutil.rmtree(run.files, ignore_errors=True)
    run.files.mkdir(parents=True)
    if isinstance(kernel, str):
        # A mirror that is away is no reason to hold back a change; the table says it.
        return results.unknown(expected, "", f"the kernel cannot be had ({kernel})", failed=expected.suite != QUICK)
    if not isinstance(image, Path):
        return results.unknown(expected, kernel.version, f"its root cannot be made ({image})")
    # SIGINT: pytest then ends the test it is in, cleans up and writes what it knows.
    command = (
        ".venv/bin/kinwatch doctor --json >/run/result/doctor.json; "
        f"KINWATCH_PATIENCE={PATIENCE} CI=1 timeout -s INT -k {END_S} {suite.limit_min}m "
        ".venv/bin/python -m pytest -v -o cache_dir=/tmp/pytest --durations=20 "
        f"--junitxml=/run/result/tests.xml {select or shlex.join(suite.tests)}"
    )
    if select or not suite.whole:
        command += f" -k '{SELECTED[run.best]}'"
    print(f"{run.name}: {kernel.version}", file=sys.stderr, flush=True)
    try:
        result = machine.run(
            kernel,
            image,
            command,
            run.files,
            append=run.append,
            cgroup=run.cgroup,
            hide_btf=run.hide_btf,
            timeout_s=suite.limit_min * 60 + 2 * END_S,
            architecture=architecture,
            busybox=machine.BUSYBOX if architecture == HOST else foreign.busybox(image),
        )
    except machine.Broken as error:
        (run.files / "broken").write_text(str(error))
        return results.unknown(expected, kernel.version, f"the machine failed, see {run.files / 'broken'}")
    outcome = results.judge(expected, kernel.version, run.files, result.status, result.took_s)
    word = "FAILED" if outcome.failed else "ok"
    print(f"{run.name}: {word}, {outcome.ran}", file=sys.stderr, flush=True)
    return outcome


if __name__ == "__main__":
    os.chdir(root.CHECKOUT)
    sys.exit(main(sys.argv[1:]))

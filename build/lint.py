#!/usr/bin/env python3
"""Every static check of the repository, all of them run even when one fails.

Owns: which tool looks at which files, with the reason for whatever a tool is told to let pass. Refuses to know: how
anything is built; the Python tools' own settings stand in pyproject.toml, the C style in .clang-format,
the analyzer's checks in .clang-tidy.

lint.py            check, exit 1 when a check fails
lint.py --format   put the C files into their format instead
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ebpf
import native
from recipe import ROOT

TOOLS = Path(sys.executable).parent

# What cppcheck is told to let pass, and why.
CPPCHECK_LETS_PASS = {
    "missingIncludeSystem": "it reads our files, not the system's headers",
    "normalCheckLevelMaxBranches": "says only that it did not look at every branch",
    "checkersReport": "says only which checks ran",
    "unusedFunction": "the functions of engine.h and loader.h are called from Python",
    "unusedStructMember": "the wire has padding that nobody reads, and BPF maps are described by members",
    "unmatchedSuppression": "versions of cppcheck differ in what they find",
}


def c_files() -> list[str]:
    """Every C file of ours, relative to the root."""
    folders = ("ebpf", "monitor/engine/native", "tests")
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.[ch]"))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def programs() -> list[str]:
    """The C programs of tests, benches and fuzzing, each a whole program."""
    return [name for name in c_files() if name.startswith("tests/") and name.endswith(".c") and ".bpf." not in name]


def kernel_programs() -> list[str]:
    """The C files that become objects for the kernel."""
    return [name for name in c_files() if name.endswith(".bpf.c")]


def commands() -> dict[str, list[str]]:
    """The checks by name."""
    sources = [str(path.relative_to(ROOT)) for path in native.sources()]
    user_space = [*native.LANGUAGE, *native.WARNINGS, *native.INCLUDES, "-fsyntax-only"]
    checks = {
        "ruff": [str(TOOLS / "ruff"), "check", "."],
        "ruff format": [str(TOOLS / "ruff"), "format", "--check", "."],
        # From nothing: what mypy remembers may be of a file that was missing then.
        "mypy": [str(TOOLS / "mypy"), "--no-incremental", "monitor", "build", "tests"],
        "clang-format": ["clang-format", "--dry-run", "-Werror", *c_files()],
        "clang bpf": ["clang", *ebpf.flags(), "-DSEES=2", "-fsyntax-only", *kernel_programs()],
    }
    for compiler in ("gcc", "clang"):
        checks[f"{compiler} native"] = [compiler, *user_space, *sources]
        checks[f"{compiler} programs"] = [compiler, *user_space, "-Itests/programs", *programs()]
    checks["cppcheck"] = [
        *("cppcheck", "--quiet", "--std=c11", "--enable=warning,performance,portability", "--error-exitcode=1"),
        # A macro of libbpf's headers, which it does not read.
        "-DLIBBPF_OPTS(TYPE,NAME,...)=struct TYPE NAME = {__VA_ARGS__}",
        *("--inline-suppr", *native.INCLUDES, *(f"--suppress={name}" for name in CPPCHECK_LETS_PASS)),
        *sources,
        *programs(),
    ]
    checks["clang-tidy"] = ["clang-tidy", "--quiet", *sources, "--", *native.LANGUAGE, *native.INCLUDES]
    return checks


def check() -> int:
    """Run every check, as many at once as there are processors; 1 when one of them failed."""
    checks = commands()
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # The slowest stand last in the table; begun first, they end with the others.
        done = {name: pool.submit(_run, checks[name]) for name in reversed(checks)}
        for name, command in checks.items():
            code, said, took_s = done[name].result()
            print(f"{'FAIL' if code else 'ok  '} {name} ({took_s:.1f} s)", flush=True)
            if code:
                failed.append(name)
                print(f"{shlex.join(command)}\n{said}", flush=True)
    if failed:
        print(f"lint: {', '.join(failed)} failed")
    return 1 if failed else 0


def _run(command: list[str]) -> tuple[int, str, float]:
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout, time.monotonic() - began


if __name__ == "__main__":
    if sys.argv[1:] == ["--format"]:
        sys.exit(subprocess.run(["clang-format", "-i", *c_files()], cwd=ROOT, check=False).returncode)
    sys.exit(check())

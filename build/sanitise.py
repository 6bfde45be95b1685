#!/usr/bin/env python3
"""Run the engine under AddressSanitizer and UndefinedBehaviorSanitizer: its tests, or fuzzers at its doors.

Owns: the sanitized builds under .cache/sanitise. Refuses to know: what the tests and the fuzz target check.

sanitise.py engine             tests/engine against a module built by gcc with both sanitizers
sanitise.py fuzz --seconds N   each of tests/fuzz/fuzz_*.c (libFuzzer, clang); fuzz_ingest starts from tests/data/*.rec
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import native
from recipe import CACHE, ROOT, RecipeFailed, run

HOME = CACHE / "sanitise"
FUZZ_FLAGS = (
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
)
LONGEST_INPUT_BYTES = 65536


def engine_sources() -> list[Path]:
    """The engine's C files: those that do not know libbpf, nor the loader."""
    return [path for path in native.sources() if not {"<bpf/", '"loader'} & _inclusions(path)]


def _inclusions(path: Path) -> set[str]:
    text = "".join(line for line in path.read_text().splitlines() if line.startswith("#include"))
    return {mark for mark in ("<bpf/", '"loader') if mark in text}


def engine() -> int:
    """Run tests/engine against the sanitized module; pytest's exit code."""
    package = HOME / "monitor"
    shutil.rmtree(package, ignore_errors=True)
    # A copy beside the checkout, found first, so that the ordinary module stays as it is.
    shutil.copytree(
        ROOT / "monitor", package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "native", ".making-*")
    )
    module = native.build(HOME / native.OUTPUT.name, sanitise=True)
    shutil.copy2(module, package / native.OUTPUT.relative_to(ROOT / "monitor"))
    compiler = shlex.split(os.environ.get("CC", "cc"))
    # Python itself is not instrumented: the sanitizer's library must be there first, and its own leaks are not ours.
    environment = os.environ | {
        "PYTHONPATH": str(HOME),
        "LD_PRELOAD": run([*compiler, "-print-file-name=libasan.so"]).strip(),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",  # the working directory, which has the ordinary module, is not looked into
    }
    found = "import monitor.engine._native as m, pathlib; print(pathlib.Path(m.__file__).resolve())"
    loaded = subprocess.run([sys.executable, "-c", found], env=environment, capture_output=True, text=True, check=False)
    if not loaded.stdout.startswith(str(HOME)):
        text = f"the sanitized module was not loaded but {loaded.stdout.strip()!r}\n{loaded.stderr}"
        raise RecipeFailed(text)
    pytest = [sys.executable, "-m", "pytest", "-q", "tests/engine"]
    return subprocess.run(pytest, cwd=ROOT, env=environment, check=False).returncode


def fuzz(seconds: int) -> int:
    """Fuzz every door, for seconds together; not 0 when one broke, and the input that did it is named by libFuzzer."""
    doors = sorted((ROOT / "tests" / "fuzz").glob("fuzz_*.c"))
    return max(_fuzz(door, max(1, seconds // len(doors))) for door in doors)


def _fuzz(door: Path, seconds: int) -> int:
    corpus = HOME / f"corpus-{door.stem}"
    corpus.mkdir(parents=True, exist_ok=True)  # grows from run to run
    target = HOME / door.stem
    clang = shlex.split(os.environ.get("CLANG", "clang"))
    inputs = [door, *engine_sources()]
    run([*clang, *native.LANGUAGE, *native.WARNINGS, *FUZZ_FLAGS, *native.INCLUDES, *inputs, "-o", target])
    if door.stem == "fuzz_ingest":
        for record_file in (ROOT / "tests" / "data").glob("*.rec"):
            shutil.copy2(record_file, corpus)
    command = [
        *(str(target), f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT_BYTES}", "-print_final_stats=1"),
        *("-verbosity=1", "-timeout=10", f"-artifact_prefix={HOME}/found-", str(corpus)),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(_tail(done.stdout, 400 if done.returncode else 8))
    return done.returncode


def _tail(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])


def main() -> int:
    """Parse the command line and run what it names."""
    parser = argparse.ArgumentParser(description="Run the engine under sanitizers.")
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("engine", help="tests/engine, gcc")
    fuzzing = what.add_parser("fuzz", help="libFuzzer, clang")
    fuzzing.add_argument("--seconds", type=int, default=20, help="default: %(default)s")
    arguments = parser.parse_args()
    return engine() if arguments.what == "engine" else fuzz(arguments.seconds)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RecipeFailed as failed:
        sys.exit(f"build/sanitise.py: {failed}")

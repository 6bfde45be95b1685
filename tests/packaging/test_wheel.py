"""The wheel is the program: installed where nothing else is, it watches a real process.

Owns a virtual environment made for this test alone. Refuses to know how the wheel is made: it calls the recipe.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The repaired wheel, made from the sources as they are now."""
    command = [sys.executable, str(ROOT / "build" / "wheel.py")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return ROOT / made.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that has the wheel and what it requires, and no compiler on its PATH."""
    home = tmp_path_factory.mktemp("installed")
    subprocess.run(["/usr/bin/python3", "-m", "venv", str(home)], check=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", str(wheel)]
    done = subprocess.run(pip, env=_bare(home / "bin"), cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return home / "bin"


def _bare(bin_folder: Path) -> dict[str, str]:
    """An environment whose PATH has the installed program and nothing else: no compiler, no system tool."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PATH", "PYTHONPATH", "VIRTUAL_ENV"}}
    environment = kept | {"PATH": str(bin_folder)}
    for tool in ("cc", "gcc", "clang", "ld", "make", "pkg-config"):
        assert shutil.which(tool, path=environment["PATH"]) is None
    return environment


def test_the_wheel_says_which_machines_it_serves(wheel: Path) -> None:
    _, _, python, interface, platform = wheel.stem.split("-")
    assert (python, interface) == ("cp311", "abi3")
    assert "manylinux" in platform


def test_the_wheel_is_at_most_2_mib_without_the_aws_library(wheel: Path) -> None:
    assert wheel.stat().st_size <= 2 * 1024 * 1024
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "awscrt" in name]


def test_the_wheel_holds_the_program_and_its_libraries_and_no_source_to_compile(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "monitor/engine/_native.abi3.so" in names
    assert {f"monitor/capture/{name}" for name in ("kinwatch.bpf.o", "net.bpf.o", "kinwatch.bcc.c")} <= set(names)
    for library in ("libbpf-", "libelf-"):
        assert any(name.startswith(f"kinwatch.libs/{library}") for name in names), library
    assert any(name.endswith("licenses/LICENSE") for name in names)
    sources = [name for name in names if name.endswith((".c", ".h", ".pyc")) or name.startswith(("tests", "build"))]
    assert sources == ["monitor/capture/kinwatch.bcc.c"], "what a device without BTF compiles, and nothing else"
    native = [name for name in names if name.endswith(".so") and not name.startswith("kinwatch.libs/")]
    assert native == ["monitor/engine/_native.abi3.so"], "no module of another build slipped in"


def test_the_installed_command_explains_itself(installed: Path) -> None:
    command = [str(installed / "kinwatch"), "--help"]
    done = subprocess.run(command, env=_bare(installed), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout


def test_the_installed_program_watches_a_real_process(installed: Path, tmp_path: Path) -> None:
    assert os.geteuid() == 0, "watching needs root: sudo make test"
    name = f"kwwheel{os.getpid() % 1_000_000}"
    application = Path(shutil.copy2("/bin/sh", tmp_path / name))
    log = tmp_path / "events.jsonl"
    with _running(installed, tmp_path, name, log) as daemon:
        libraries = Path(f"/proc/{daemon.pid}/maps").read_text()
        bundled = installed.parent / "lib"
        mapped = {line.split()[-1] for line in libraries.splitlines() if "libbpf" in line}
        assert mapped, "the core capture maps libbpf"
        assert all(path.startswith(str(bundled)) for path in mapped), "its own libbpf, not the system's"

        child = subprocess.run([str(application), "-c", "/bin/true; exit 7"], check=False)
        assert child.returncode == 7
        events = _lines_until(log, lambda line: line["event"] == "exit" and line["depth"] == 0)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(DEADLINE_S) == 0, (tmp_path / "stderr").read_text()
    kinds = [line["event"] for line in events if line.get("watch") == name]
    assert kinds == ["root", "fork", "exec", "exit", "exit"]
    assert [line["exit_code"] for line in events if line["event"] == "exit"] == [0, 7]


@contextmanager
def _running(installed: Path, tmp_path: Path, name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon, from the moment it says that it watches; ended and unloaded whatever happens."""
    config = tmp_path / "kinwatch.toml"
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\nsocket = "{tmp_path}/run/control.sock"\n')
    program = str(installed / "kinwatch")
    command = [program, "run", "-c", str(config), "--watch", name, "--capture", "core", "--log", str(log), "--fresh"]
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        daemon = subprocess.Popen(command, env=_bare(installed), cwd="/", stderr=stderr)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while "kinwatch: watching (" not in said.read_text():
            assert daemon.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.kill()
        daemon.wait()
        subprocess.run([program, "unload"], env=_bare(installed), cwd="/", check=False)


def _lines_until(log: Path, last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The log's lines once one of them is the last that is waited for."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        text = log.read_text() if log.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if any(last(line) for line in lines):
            return lines
        assert time.monotonic() < deadline, text
        time.sleep(0.05)

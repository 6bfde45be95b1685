"""The Debian package for 64-bit ARM, made on another machine: unpacked by dpkg into a Debian of that machine, it runs.

Owns that root, in which QEMU emulates one process at a time. Refuses to know the package's scripts, which would start
others: they are the same for every machine, and test_deb.py runs them.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.recordfile import RecordedWatch, RecordWriter
from tests.packaging import debs
from tests.packaging.trees import ROOT, Tree, copy_of, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.packages

MACHINE = "aarch64"
PYTHON = "/opt/kinwatch/bin/python3"
DATA = ROOT / "tests" / "data"
# elf(5): e_machine.
EM_AARCH64, EM_BPF = 183, 247
IMPORTS = """
import importlib.metadata, importlib.util, pathlib, sysconfig
packages = pathlib.Path(sysconfig.get_paths()["platlib"])
assert str(packages).startswith("/opt/kinwatch/"), packages
found = sorted(path.relative_to(packages) for path in packages.rglob("*.so*") if ".libs" not in str(path.parent))
for path in found:
    name = ".".join(path.with_name(path.name.partition(".")[0]).parts)
    importlib.import_module(name)
    print(name)
"""


@pytest.fixture(scope="module")
def package() -> Path:
    """The package."""
    return debs.package(MACHINE)


@pytest.fixture(scope="module")
def debian(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """A Debian of that machine into which it was unpacked."""
    root = copy_of(tree("bookworm", MACHINE), tmp_path_factory.mktemp("root") / "debian")
    words: list[str | Path] = [
        "dpkg",
        f"--root={root.path}",
        "--force-architecture,depends,not-root",
        "--unpack",
        package,
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield root
    subprocess.run(["rm", "-rf", "--one-file-system", root.path], check=True)


def test_it_says_that_it_is_for_64_bit_arm_and_needs_its_c_library(package: Path) -> None:
    assert package.name.endswith("_arm64.deb")
    fields = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True).stdout
    assert "\nArchitecture: arm64\n" in fields
    assert "libc6 (>= 2.28)" in fields


def test_lintian_finds_no_error(package: Path) -> None:
    command: list[str | Path] = ["lintian", "--allow-root", "--fail-on", "error,warning", package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_binary_in_it_is_of_that_machine(debian: Tree) -> None:
    machines: dict[str, int] = {}
    for folder, _, files in os.walk(f"{debian.path}/opt/kinwatch"):
        for path in (Path(folder, name) for name in files):
            head = path.read_bytes()[:20] if not path.is_symlink() else b""
            if head.startswith(b"\x7fELF"):
                assert head[4:6] == b"\x02\x01", f"{path}: 64 bits, little endian"
                (machines[str(path)],) = struct.unpack_from("<H", head, 18)
    objects = {path for path, machine in machines.items() if machine == EM_BPF}
    assert {Path(path).name for path in objects} == {"kinwatch.bpf.o", "net.bpf.o"}
    rest = {path: machine for path, machine in machines.items() if path not in objects}
    assert any("_awscrt" in path for path in rest)
    assert set(rest.values()) == {EM_AARCH64}, rest


def test_its_hooks_read_the_registers_of_that_machine(package: Path, tmp_path: Path) -> None:
    # A tp_btf program reads no registers, so the objects of both machines may be the same but for those that do.
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    words = [sys.executable, "-c", "import sys; sys.path.insert(0, 'build'); import ebpf, pathlib"]
    words[-1] += f"; print(*ebpf.build({MACHINE!r}, pathlib.Path('.cache/portable/{MACHINE}')))"
    made = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    for built in (Path(ROOT, name) for name in made if name.endswith(".o")):
        (shipped,) = tmp_path.rglob(built.name)
        assert shipped.read_bytes() == built.read_bytes()


def test_on_that_machine_every_module_of_it_is_imported(debian: Tree) -> None:
    done = debian.run(PYTHON, "-B", "-c", IMPORTS)
    assert done.returncode == 0, done.stderr
    assert {"_awscrt", "_cffi_backend", "monitor.engine._native", "msgspec._core"} <= set(done.stdout.split())


def test_on_that_machine_the_command_replays_records_as_here(debian: Tree, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    watches = [
        RecordedWatch(slot=slot, name=name, kind="process", value=name) for slot, name in enumerate(("myapp", "shell"))
    ]
    with RecordWriter(recorded, watches, wall_ns=1_795_575_840_000_000_000) as writer:
        writer.append((DATA / "two_watches.rec").read_bytes())
    command = [sys.executable, "-m", "monitor", "replay", "--format", "json", str(recorded)]
    here = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '"event":"exit"' in here
    words = ("-B", "/opt/kinwatch/bin/kinwatch", "replay", "--format", "json", recorded)
    there = debian.run(PYTHON, *words, shares=(tmp_path,))
    assert (there.returncode, there.stdout) == (0, here), there.stderr

"""A portable wheel is what a device of its kind can load: its machine, an old C library, all it needs inside.

Owns the wheels that `make wheels` makes, looked at by auditwheel, and loaded by the loader of a Debian with glibc 2.31
and by an emulated 64-bit ARM. Refuses to know how they are made.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import portable
from tests.packaging.trees import tree

pytestmark = pytest.mark.packages

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 2 * 1024 * 1024
TESTS = ROOT / "tests"
GOLDEN = """
import sys
sys.path[:0] = sys.argv[1:]
from tests.engine.golden import DATA, SCENARIOS, golden_engine
for name in (scenario.__name__ for scenario in SCENARIOS):
    with golden_engine() as engine:
        engine.ingest((DATA / f"{name}.rec").read_bytes())
        assert engine.take().lines.decode() == (DATA / f"{name}.jsonl").read_text(), name
print(len(SCENARIOS))
"""


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    """A machine that there is a wheel for."""
    return str(request.param)


@pytest.fixture(scope="module")
def wheel(machine: str) -> Path:
    """Its wheel, from the sources as they are now."""
    command = [sys.executable, str(ROOT / "build" / "wheel.py"), "--machine", machine]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return ROOT / made.stdout.splitlines()[-1]


def test_it_serves_every_device_with_glibc_2_28_and_says_so(wheel: Path, machine: str) -> None:
    assert wheel.name.endswith(f"-cp311-abi3-manylinux_2_28_{machine}.whl")
    said = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True, check=True
    )
    assert f'consistent with the following platform tag: "manylinux_2_28_{machine}"' in " ".join(said.stdout.split())


def test_parts_of_another_recipe_lie_elsewhere_and_are_made_again(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.{portable.GLIBC}"]
    here = portable._parts(machine, words)
    assert here == portable._parts(machine, ["/another/python3", *words[1:]])
    assert here != portable._parts(machine, [*words[:-1], f"{machine}-linux-gnu.2.31"])
    monkeypatch.setattr(portable, "_RECIPES", (*portable._RECIPES, ROOT / "build" / "recipe.py"))
    assert here != portable._parts(machine, words)


def test_it_is_at_most_2_mib_with_everything_inside(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "monitor/engine/_native.abi3.so",
        "monitor/capture/kinwatch.bpf.o",
        "monitor/capture/net.bpf.o",
    } <= set(names)
    assert [name for name in names if name.startswith("kinwatch.libs/libelf-")]


def test_the_loader_of_its_oldest_debian_loads_it(wheel: Path, machine: str, tmp_path: Path) -> None:
    # Debian 11 has glibc 2.31 and no Python that is new enough, so its loader alone is asked, with every symbol.
    root = tree("bullseye", machine)
    place = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(place)
    code = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).PyInit__native is not None)"
    module = place / "monitor" / "engine" / "_native.abi3.so"
    done = root.run("/usr/bin/python3", "-c", code, module, shares=(tmp_path,))
    assert done.stdout == "True\n", done.stderr


def test_on_that_machine_records_make_the_lines_they_always_made(wheel: Path, machine: str, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(place), "--only-binary", ":all:"]
    pip += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3"]
    pip += [word for glibc in ("2_17", "2_28") for word in ("--platform", f"manylinux_{glibc}_{machine}")]
    done = subprocess.run(
        [*pip, "--platform", f"manylinux2014_{machine}", wheel], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    words = ("-B", "-c", GOLDEN, place, ROOT)
    there = tree("bookworm", machine).run("/usr/bin/python3", *words, shares=(tmp_path, TESTS))
    assert there.stdout.strip().isdigit(), there.stderr

"""[capture] btf: both objects are relocated by the file it names, and a wrong one is refused.

Owns the files: the kernel's own, what the programs use of it, and two that are wrong. Refuses to know how libbpf reads.
"""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from monitor.capture.choose import KERNEL_BTF
from monitor.capture.core import NET_PROGRAMS, PROGRAMS
from monitor.engine.lines import Exit
from tests.kernel.conftest import kinwatch, pinned, sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Programs
    from tests.kernel.conftest import Daemons


def _whole(target: Path) -> None:
    target.write_bytes(Path(KERNEL_BTF).read_bytes())


def _what_the_programs_use(target: Path) -> None:
    command = ["bpftool", "gen", "min_core_btf", KERNEL_BTF, str(target), str(PROGRAMS), str(NET_PROGRAMS)]
    subprocess.run(command, check=True, capture_output=True)
    assert target.stat().st_size < 100_000 < Path(KERNEL_BTF).stat().st_size


@pytest.mark.parametrize("make", [_whole, _what_the_programs_use], ids=["whole", "cut down"])
def test_both_objects_are_relocated_by_the_file(
    daemons: Daemons, programs: Programs, name: str, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    file = tmp_path / "kernel.btf"
    make(file)
    daemons.configure(f'[capture]\nkind = "core"\nbtf = "{file}"\n')
    doctor = json.loads(kinwatch("doctor", "-c", daemons.config, "--json").stdout)
    assert (doctor["facts"]["relocated_by"], doctor["capture"]) == (str(file), "core")
    daemon = daemons.start("--watch", name)
    app = programs.start("short_lived", name, "20")
    app.fact("children")
    app.release()
    daemon.wait_for(Exit, pid=app.pid)
    assert daemon.counters(name)["spawned"] == 20
    hooks = daemon.ask("status")["network"]
    assert {said for hook, said in hooks.items() if hook != "packets"} == {"live"}, hooks
    daemon.stop()


def _not_btf() -> bytes:
    return b"not BTF at all"


def _of_another_kernel() -> bytes:
    names = b"\0task_struct\0"
    task = struct.pack("<III", 1, 4 << 24, 64)  # a struct of 64 bytes without members
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(task), len(task), len(names)) + task + names


@pytest.mark.parametrize("capture", ["auto", "core"])
@pytest.mark.parametrize(
    ("make", "complaint"), [(_not_btf, "a file that is no BTF"), (_of_another_kernel, "the BTF of another kernel")]
)
def test_a_wrong_file_is_refused_with_what_is_wrong_and_what_to_do(
    tmp_path: Path, make: Callable[[], bytes], complaint: str, capture: str
) -> None:
    config, file = tmp_path / "config.toml", tmp_path / "btf"
    file.write_bytes(make())
    config.write_text(f'[[watch]]\nname = "app"\nprocess = "app"\n[capture]\nbtf = "{file}"\n')
    done = kinwatch("run", "-c", config, "--capture", capture)
    assert done.returncode == 3
    assert f"[capture] btf names {complaint}" in sentence(done)
    assert "or leave it empty" in done.stderr
    assert not pinned()

"""Clean roots to install in and to load from: small Debian trees of a suite and a machine, entered by chroot.

Owns the trees, in .cache/trees, and what is mounted while a command runs in one. Refuses to know what is installed.

A tree of another machine runs by QEMU's user mode, which emulates one process.
"""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from mirror import codename, mirrors

ROOT: Final = Path(__file__).resolve().parents[2]
TREES: Final = ROOT / ".cache" / "trees"
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
PACKAGES: Final = ("python3", "python3-cffi-backend", "libelf1", "zlib1g", "adduser")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Tree(NamedTuple):
    """A root."""

    path: Path
    machine: str

    def words(self, *command: str | Path, shares: tuple[Path, ...] = (), kernel: bool = False) -> list[str]:
        """The command line that runs a command in it. `shares`: folders that it sees under the same path.

        `kernel`: with /proc, /sys and /dev of this machine. Mounts end with the command: they are in a namespace of
        their own.
        """
        folders = [*shares, *map(Path, ("/proc", "/sys", "/dev") if kernel else ())]
        steps = []
        for folder in folders:
            place = shlex.quote(f"{self.path}{folder}")
            steps += [f"mkdir -p {place}", f"mount --rbind {shlex.quote(str(folder))} {place}"]
        emulator = [] if self.machine == platform.machine() else [f"/qemu-{self.machine}-static"]
        program = shlex.join([*emulator, *map(str, command)])
        environment = f"env -i PATH={PATH} HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive"
        steps.append(f"exec {environment} chroot {shlex.quote(str(self.path))} {program}")
        return ["unshare", "--mount", "sh", "-ec", "; ".join(steps)]

    def run(
        self, *command: str | Path, shares: tuple[Path, ...] = (), kernel: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end."""
        words = self.words(*command, shares=shares, kernel=kernel)
        return subprocess.run(words, capture_output=True, text=True, check=False)


@cache
def tree(suite: str, machine: str, *more: str, installed: bool = False) -> Tree:
    """A tree that is made once, with more packages. `installed`: they are set up, so that dpkg can install others."""
    path = TREES / "-".join((suite, machine, *(["installed"] if installed else []), *more))
    found = mirrors()
    words = [
        *("unshare", "--mount"),  # its mounts end with it, also where it is killed
        *("mmdebstrap", "--quiet", "--mode=root", f"--variant={'minbase' if installed else 'extract'}"),
        *(f"--architectures={ARCHITECTURES[machine]}", f"--include={','.join((*PACKAGES, *more))}"),
        *(suite, str(path)),
        f"deb {found.archive} {suite} main",
    ]
    if suite == codename():  # of older ones the mirrors have no longer all that their lists name
        words.append(f"deb {found.security} {suite}-security main")
    whole = path.with_name(f"{path.name}.whole")
    if not whole.exists() or whole.read_text() != shlex.join(words):
        shutil.rmtree(path, ignore_errors=True)
        TREES.mkdir(parents=True, exist_ok=True)
        subprocess.run(words, check=True)
        whole.write_text(shlex.join(words))
    if machine != platform.machine():
        shutil.copy2(f"/usr/bin/qemu-{machine}-static", path)
    return Tree(path, machine)


def copy_of(original: Tree, place: Path) -> Tree:
    """A copy to change, on the same file system as long as the place is; hard links are not made."""
    subprocess.run(["cp", "--archive", "--reflink=auto", original.path, place], check=True)
    return Tree(place, original.machine)

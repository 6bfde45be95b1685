"""A virtual machine: boots a kernel on a root image, runs one command as root, gives back its output and files.

Owns the initial RAM disk, QEMU's flags and how a result comes out. Refuses to know what the command is.

Software emulation (TCG) always, one thread: with one thread per processor a guest's kernel panicked now and then while
it patched its own text, and where the host is itself a guest /dev/kvm may be there and start no kernel.
"""

from __future__ import annotations

import lzma
import shlex
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tests.vm.kernels import Kernel


class Emulated(NamedTuple):
    """How QEMU is told to be a machine."""

    words: str
    console: str
    """What its first serial port is called there."""
    port: str = "-device pci-serial,chardev=heard"
    """The second one, for what the command says: these machines have no other place for it."""
    heard: str = "ttyS0"
    processors: int = 2


EMULATED: Final = {
    "x86_64": Emulated("qemu-system-x86_64 -M q35 -cpu max", "ttyS0", "-serial chardev:heard", "ttyS1"),
    # Not -cpu max: emulating its pointer authentication takes most of the time.
    "aarch64": Emulated("qemu-system-aarch64 -M virt -cpu cortex-a72", "ttyAMA0"),
    "armv7l": Emulated(
        "qemu-system-arm -M virt,highmem=off -cpu cortex-a15",
        "ttyAMA0",
        processors=1,  # with two of them in one thread the kernel stands still when it protects its own text
    ),
}
"""By what uname -m says."""
BUSYBOX: Final = Path("/usr/bin/busybox")
MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "overlay")
"""What it takes to reach the root; crc32c is a soft dependency of ext4 that modules.dep does not tell."""
NETWORK: Final = ("veth", "dummy", "mptcp_diag", "tcp_diag", "udp_diag", "inet_diag", "unix_diag", "vsock", "tls")
RESULT_MB: Final = 64

_INIT: Final = r"""#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
while read -r m; do $B insmod /m/$m || $B echo "insmod $m failed"; done </m/list
$B mkdir -p /lo /up /r
$B mount -t ext4 -o ro,noload /dev/vda /lo
$B mount -t tmpfs -o size=75% up /up; $B mkdir /up/u /up/w
$B mount -t overlay -o lowerdir=/lo,upperdir=/up/u,workdir=/up/w ov /r
for d in proc sys dev; do $B mount --move /$d /r/$d; done
$B mkdir -p /r/tmp /r/run
$B mount -t tmpfs tmpfs /r/tmp; $B mount -t tmpfs tmpfs /r/run
$B cp /stage2 /r/run/stage2
exec $B switch_root /r /bin/bash /run/stage2
"""

_STAGE2: Final = r"""
mount -t tracefs none /sys/kernel/tracing; mount -t bpf bpf /sys/fs/bpf; mount -t securityfs none /sys/kernel/security
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs -o mode=1777 shm /dev/shm
@CGROUP@
ip link set lo up; hostname vm
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LANG=C.UTF-8
@BEFORE@
mkdir /run/result; cd /kinwatch
( @COMMAND@ ) </dev/null 2>&1 | tee /run/result/output >/dev/@HEARD@
echo ${PIPESTATUS[0]} >/run/result/status
dmesg >/run/result/dmesg
tar -C /run/result -cf /dev/vdb . && echo "@@DONE" >/dev/console
sync; echo o >/proc/sysrq-trigger; sleep 60
"""
_CGROUP: Final = {
    "v2": "mount -t cgroup2 none /sys/fs/cgroup",
    "v1": (
        "mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/cpu; mount -t cgroup -o cpu none /sys/fs/cgroup/cpu"
    ),
}
_HIDE_BTF: Final = ": >/run/empty; mount --bind /run/empty /sys/kernel/btf/vmlinux"


class Broken(Exception):
    """The machine, not the command, failed; the text is the end of its console."""


class Result(NamedTuple):
    """What a command left."""

    status: int
    files: Path
    """output, dmesg, and what it wrote into /run/result; heard: the output, there while the machine still runs."""
    took_s: float


def run(  # noqa: PLR0913 - what a machine is made of
    kernel: Kernel,
    root: Path,
    command: str,
    files: Path,
    *,
    append: str = "",
    cgroup: str = "v2",
    hide_btf: bool = False,
    memory_mb: int = 2048,
    timeout_s: float = 3600,
    first: str = "",
    architecture: str = "x86_64",
    busybox: Path = BUSYBOX,
) -> Result:
    """Boot, run, switch off. `files`: an empty folder for the result. Raises Broken, after a second try.

    `first`: a shell script that is the first process in place of ours, so that it can become an init system; `command`
    is nothing then, and the script, or what it starts, leaves the result and switches off. `architecture`: of
    EMULATED; `busybox`: one of it, linked statically.
    """
    for last in (False, True):
        try:
            return _once(
                kernel,
                root,
                command,
                files,
                append=append,
                cgroup=cgroup,
                hide_btf=hide_btf,
                memory_mb=memory_mb,
                timeout_s=timeout_s,
                first=first,
                architecture=architecture,
                busybox=busybox,
            )
        except Broken as error:
            if last:
                raise
            (files / "broken.first").write_text(str(error))
    raise AssertionError


def _once(  # noqa: PLR0913 - as run
    kernel: Kernel,
    root: Path,
    command: str,
    files: Path,
    *,
    append: str,
    cgroup: str,
    hide_btf: bool,
    memory_mb: int,
    timeout_s: float,
    first: str,
    architecture: str,
    busybox: Path,
) -> Result:
    emulated = EMULATED[architecture]
    stage2 = first or _STAGE2.replace("@CGROUP@", _CGROUP[cgroup]).replace("@BEFORE@", _HIDE_BTF if hide_btf else "")
    stage2 = stage2.replace("@HEARD@", emulated.heard)
    initrd, disk, console, heard = (files / name for name in ("initrd", "result.img", "console", "heard"))
    initrd.write_bytes(_initrd(kernel, busybox, stage2.replace("@COMMAND@", command)))
    with disk.open("wb") as made:
        made.truncate(RESULT_MB << 20)
    words = [
        *shlex.split(f"{emulated.words} -accel tcg,thread=single -smp {emulated.processors}"),
        *("-display", "none", "-nodefaults"),
        *("-no-reboot", "-m", str(memory_mb), "-kernel", str(kernel.image), "-initrd", str(initrd)),
        *("-append", f"console={emulated.console} panic=-1 loglevel=4 {append}".strip()),
        *("-monitor", "none", "-serial", f"file:{console}"),
        *("-chardev", f"file,id=heard,path={heard}", *shlex.split(emulated.port)),
    ]
    for number, (image, mode) in enumerate(((root, "on"), (disk, "off"))):
        words += ["-drive", f"file={image},format=raw,if=none,id=d{number},readonly={mode}"]
        words += ["-device", f"virtio-blk-pci,drive=d{number}"]
    began = time.monotonic()
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        said = done.stderr
    except subprocess.TimeoutExpired:
        said = f"it did not end within {timeout_s:.0f} s"
    text = console.read_text(errors="replace") if console.exists() else ""
    if "@@DONE" not in text:
        last = heard.read_text(errors="replace")[-500:] if heard.exists() else ""
        raise Broken(f"{kernel.version}: {said.strip()}\n{text[-4000:]}\nThe command said last:\n{last}")
    subprocess.run(["tar", "--no-same-owner", "-C", files, "-xf", disk], check=True)
    disk.unlink()
    initrd.unlink()
    return Result(int((files / "status").read_text()), files, time.monotonic() - began)


def _initrd(kernel: Kernel, busybox: Path, stage2: str) -> bytes:
    entries: list[tuple[str, int, bytes, int]] = [
        (name, 0o40755, b"", 0) for name in ("bin", "proc", "sys", "dev", "m")
    ]
    entries += [
        ("dev/console", 0o20600, b"", 0x501),
        ("bin/busybox", 0o100755, busybox.read_bytes(), 0),
        ("init", 0o100755, _INIT.encode(), 0),
        ("stage2", 0o100755, stage2.encode(), 0),
    ]
    names = []
    for path in _modules(kernel.modules):
        data = path.read_bytes()
        name = path.name.partition(".ko")[0] + ".ko"
        names.append(name)
        entries.append((f"m/{name}", 0o100644, lzma.decompress(data) if path.suffix == ".xz" else data, 0))
    entries.append(("m/list", 0o100644, "".join(f"{name}\n" for name in names).encode(), 0))
    return _newc(entries)


def _modules(folder: Path) -> list[Path]:
    """What is needed and not built in, in the order of their dependencies."""
    needs: dict[str, list[str]] = {}
    by_name: dict[str, str] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
        by_name[Path(path).name.partition(".ko")[0].replace("-", "_")] = path
    found: dict[str, None] = {}

    def add(path: str) -> None:
        for other in reversed(needs[path]):
            add(other)
        found.setdefault(path)

    for name in (*MODULES, *NETWORK):
        if name in by_name:
            add(by_name[name])
    return [folder / path for path in found]


def _newc(entries: list[tuple[str, int, bytes, int]]) -> bytes:
    """A cpio archive in the form that a kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()
    for number, (name, mode, data, device) in enumerate([*entries, ("TRAILER!!!", 0, b"", 0)], start=1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, device >> 8, device & 255, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)

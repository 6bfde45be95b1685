#!/usr/bin/env python3
"""Make dist/kinwatch_*.deb: the program in an environment of its own under /opt/kinwatch, and what makes it a service.

    build/deb.py [--machine x86_64|aarch64] [--revision N]

Owns: where things lie in the package and what it depends on. Refuses to know: how a wheel is made (wheel.py), the words
of the manual page (man.py), what happens at an installation (debian/).

What the program requires comes as wheels from the package index, for that machine and the Python of this Debian; the
package's bytes are the same again while the index offers the same versions, which the package lists.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

import portable
import wheel
from recipe import CACHE, ROOT, RecipeFailed, run, source_date_s

SCRIPTS: Final = ROOT / "build" / "debian"
SHARE: Final = ROOT / "monitor" / "share"
HOME: Final = Path("opt/kinwatch")
PYTHON: Final = sysconfig.get_python_version()
"""The environment is for the Python that the distribution has, and this is it."""
MAINTAINER: Final = "kinwatch maintainers <maintainers@kinwatch.invalid>"
_DESCRIPTION: Final = """watches everything an application starts
 A daemon that follows every descendant of the applications it is told to watch,
 from the first instruction to the exit, with eBPF. It writes an event log,
 raises alarms when something runs, connects or listens that is not expected,
 and reports to AWS IoT Device Defender."""
_LAUNCHER: Final = f"""#!/{HOME}/bin/python3
import sys

from monitor.cli import main

sys.exit(main())
"""


def build(machine: str, revision: int = 1, dist: Path = wheel.DIST) -> Path:
    """Build the package and return its path in dist. Raises RecipeFailed."""
    when_s = source_date_s()
    os.environ["SOURCE_DATE_EPOCH"] = str(when_s)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="deb-") as name:
        made = wheel.build(Path(name) / "wheel", machine)
        version = f"{made.name.split('-')[1]}-{revision}"
        tree = Path(name) / "tree"
        _environment(tree / HOME, made, machine)
        _service(tree)
        _documents(tree, version, when_s)
        _control(tree, version, machine)
        for path in sorted(tree.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        package = Path(name) / f"kinwatch_{version}_{portable.ARCHITECTURES[machine]}.deb"
        run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, package])
        return wheel.into(dist, package, f"kinwatch_*_{portable.ARCHITECTURES[machine]}.deb")


def _environment(home: Path, made: Path, machine: str) -> None:
    """A virtual environment without pip, whose Python is the system's."""
    packages = home / "lib" / f"python{PYTHON}" / "site-packages"
    platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in (17, 28))]
    run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary", ":all:"),
            *("--target", packages, "--python-version", PYTHON, "--implementation", "cp"),
            *("--abi", f"cp{PYTHON.replace('.', '')}", "--abi", "abi3", "--abi", "none"),
            *(word for tag in platforms for word in ("--platform", tag)),
            made,
        ],
        quiet=True,
    )
    shutil.rmtree(packages / "bin", ignore_errors=True)  # launchers with the interpreter that builds
    for noted in packages.glob("*.dist-info/direct_url.json"):
        noted.unlink()
    for record in packages.glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        gone = ("../../bin/", "direct_url.json")
        record.write_text("".join(line for line in lines if not any(part in line for part in gone)), encoding="utf-8")
    # Compiled here, to be used whatever their source's time is: nothing is written there on the device.
    target = f"/{HOME}/lib/python{PYTHON}/site-packages"
    run(
        [
            *(sys.executable, "-m", "compileall", "-q", "-s", packages, "-p", target, "-j", "1"),
            *("--invalidation-mode", "unchecked-hash", packages),
        ]
    )
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to("/usr/bin/python3")
    launcher = home / "bin" / "kinwatch"
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n")


def _service(tree: Path) -> None:
    """Unit, configuration, rotation, and the name on everybody's PATH."""
    unit = (SHARE / "kinwatch.service").read_text()
    _, _, body = unit.partition("[Unit]")
    text = f"[Unit]{body}".replace("/usr/local/bin/kinwatch", f"/{HOME}/bin/kinwatch")
    _put(tree / "lib/systemd/system/kinwatch.service", text)
    config = (SHARE / "kinwatch.toml").read_text()
    config = config.replace(", to be copied to /etc/kinwatch/config.toml", "")
    config = re.sub(r'(?m)^(\[log\]\n)file = ""', r'\1file = "/var/log/kinwatch/events.jsonl"', config)
    _put(tree / "etc/kinwatch/config.toml", config)
    _put(tree / "etc/logrotate.d/kinwatch", (SCRIPTS / "logrotate").read_text())
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/kinwatch").symlink_to(f"/{HOME}/bin/kinwatch")


def _documents(tree: Path, version: str, when_s: int) -> None:
    """Manual page, licences, changes, and which versions are inside."""
    page = run([sys.executable, ROOT / "build" / "man.py"])
    _put(tree / "usr/share/man/man8/kinwatch.8.gz", _zipped(page.encode()))
    place = tree / "usr/share/doc/kinwatch"
    _put(place / "copyright", (SCRIPTS / "copyright").read_text())
    _put(place / "changelog.gz", _zipped((ROOT / "CHANGELOG.md").read_bytes()))
    found = sorted(path.name for path in (tree / HOME).rglob("*.dist-info"))
    inside = "".join(f"{name.removesuffix('.dist-info').replace('-', ' ')}\n" for name in found)
    _put(place / "versions", inside)
    date = run(["date", "-u", "-R", "-d", f"@{when_s}"]).strip()
    text = f"kinwatch ({version}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- {MAINTAINER}  {date}\n"
    _put(place / "changelog.Debian.gz", _zipped(text.encode()))
    _put(tree / "usr/share/lintian/overrides/kinwatch", (SCRIPTS / "overrides").read_text())


def _control(tree: Path, version: str, machine: str) -> None:
    control = tree / "DEBIAN"
    for name in ("postinst", "prerm", "postrm"):
        control.mkdir(exist_ok=True)
        shutil.copy2(SCRIPTS / name, control / name)
    _put(control / "conffiles", "/etc/kinwatch/config.toml\n/etc/logrotate.d/kinwatch\n")
    major, minor = map(int, PYTHON.split("."))
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_relative_to(control)]
    kib = sum(-(-path.lstat().st_size // 1024) for path in files)
    fields = {
        "Package": "kinwatch",
        "Version": version,
        "Architecture": portable.ARCHITECTURES[machine],
        "Maintainer": MAINTAINER,
        "Installed-Size": str(kib),
        "Depends": (
            f"python3 (>= {PYTHON}~), python3 (<< {major}.{minor + 1}~), libc6 (>= {portable.GLIBC}), zlib1g, adduser"
        ),
        "Recommends": "logrotate, openssl",  # openssl: keys of provisioning, signatures of [remote]
        "Suggests": "python3-bpfcc",  # on kernels without BTF
        "Section": "admin",
        "Priority": "optional",
        "Description": _DESCRIPTION,
    }
    _put(control / "control", "".join(f"{key}: {value}\n" for key, value in fields.items()))
    md5 = run(["md5sum", *(path.relative_to(tree) for path in files if not path.is_symlink())], folder=tree)
    _put(control / "md5sums", md5)


def _put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _zipped(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description="Make the Debian package.")
    flags.add_argument("--machine", default=platform.machine(), choices=portable.INDEXED)
    flags.add_argument("--revision", type=int, default=1, help="of the package, after the program's version")
    flags.add_argument("--dist", type=Path, default=wheel.DIST, metavar="FOLDER", help="default: %(default)s")
    asked = flags.parse_args()
    try:
        made_package = build(asked.machine, asked.revision, asked.dist.resolve())
        print(made_package.relative_to(ROOT) if made_package.is_relative_to(ROOT) else made_package)
    except RecipeFailed as failed:
        sys.exit(f"build/deb.py: {failed}")

"""Debian packages of other suites than this machine's, without touching its apt: their mirrors, lists and files.

Owns a folder with an apt of its own. Refuses to know what is in a package.
"""

from __future__ import annotations

import functools
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SOURCES: Final = Path("/etc/apt")
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Unobtainable(Exception):
    """A mirror does not have it, or cannot be reached: what, and what apt said."""


class Mirrors(NamedTuple):
    """Where this machine gets Debian's packages from."""

    archive: str
    security: str

    def of(self, suite: str) -> str:
        """The mirror that has a suite."""
        return self.security if suite.endswith("-security") else self.archive


def codename() -> str:
    """Of this machine's Debian, "bookworm". Raises Unobtainable: it is another distribution."""
    told = platform.freedesktop_os_release()
    if told.get("ID") != "debian" or "VERSION_CODENAME" not in told:
        raise Unobtainable(
            f"this is {told.get('PRETTY_NAME', 'not Debian')}; the virtual machines are made from Debian's packages"
        )
    return told["VERSION_CODENAME"]


@functools.cache
def mirrors() -> Mirrors:
    """What the machine's own sources name."""
    archive = security = ""
    for uri, suites in _entries():
        if any("-security" in suite for suite in suites):
            security = security or uri
        else:
            archive = archive or uri
    if not archive or not security:
        raise Unobtainable(f"no mirror of Debian and of its security updates in {SOURCES}")
    return Mirrors(archive, security)


def _entries() -> Iterable[tuple[str, list[str]]]:
    files = sorted((SOURCES / "sources.list.d").glob("*"))
    for file in [SOURCES / "sources.list", *files]:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if file.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", text):
                uris = re.search(r"^URIs:\s*(\S+)", stanza, re.MULTILINE)
                suites = re.search(r"^Suites:\s*(.+)$", stanza, re.MULTILINE)
                if uris and suites:
                    yield uris[1], suites[1].split()
        else:
            for line in re.finditer(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE):
                yield line[1], [line[2]]


class Apt:
    """An apt of its own, for one architecture and some suites."""

    def __init__(
        self, folder: Path, suites: Iterable[str], architecture: str = "amd64", *, sources: bool = False
    ) -> None:
        """Fetches the lists of the suites; `sources`: also those of source packages."""
        self._folder = folder
        self._options = [
            *("-o", f"Dir::Etc::sourcelist={folder}/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::State::status={folder}/status"),
            *("-o", f"Dir::Cache={folder}/cache", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="),
            *("-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}"),
            *("-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=5"),
        ]
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        lines = "".join(
            f"{kind} [signed-by={KEYRING}] {mirrors().of(suite)} {suite} main\n"
            for suite in sorted(set(suites))
            for kind in ("deb", *(["deb-src"] if sources else []))
        )
        listed = folder / "sources.list"
        if not listed.exists() or listed.read_text(encoding="utf-8") != lines:
            listed.write_text(lines, encoding="utf-8")
        # The lists of one suite that cannot be had must not cost the others: who needs it finds out.
        subprocess.run(["apt-get", *self._options, "-qq", "update"], check=False, capture_output=True)

    def depends(self, package: str, suite: str) -> list[str]:
        """Names that a package of a suite depends on, versions cut off."""
        shown = self._run("apt-cache", "show", f"{package}/{suite}")
        found = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        return re.findall(r"(?:^|, )([a-z0-9][a-z0-9.+-]*)", found[1]) if found else []

    def download(self, names: Iterable[str], suite: str, target: Path) -> list[Path]:
        """Fetch packages of a suite into a folder."""
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            self._run("apt-get", "-qq", "download", f"{name}/{suite}", cwd=target)
        return sorted(target.glob("*.deb"))

    def source(self, name: str, suite: str, target: Path) -> list[Path]:
        """Fetch the files of a source package, which apt checks against the signed lists."""
        target.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "-qq", "source", "--download-only", f"{name}/{suite}", cwd=target)
        return sorted(target.iterdir())

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [program, *self._options, *arguments], cwd=cwd, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unobtainable(f"{' '.join(arguments)}: {done.stderr.strip() or 'apt failed'}")
        return done.stdout

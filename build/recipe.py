"""What both compile recipes share: run a compiler, and compile again only when something that matters has changed.

Owns: the key of an output (a hash of its inputs' bytes and of the commands), running a command with a readable failure.
Refuses to know: which compiler, which files, what a wheel is.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"


class RecipeFailed(Exception):
    """A recipe cannot make its output; the text says what failed, on what, and what to do."""


def run(command: Sequence[str | Path], *, quiet: bool = False, folder: Path = ROOT) -> str:
    """Run command in folder and return its stdout. `quiet`: of a success its stderr is not shown.

    Raises RecipeFailed with the command and everything it said, or with what to install when it is not there.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        text = f"{words[0]}: not found. `make build` installs it; by hand: apt-get install gcc clang llvm libbpf-dev"
        raise RecipeFailed(text) from None
    if done.returncode != 0:
        text = f"{shlex.join(words)}\nexited {done.returncode}:\n{done.stdout}{done.stderr}"
        raise RecipeFailed(text)
    if done.stderr and not quiet:
        sys.stderr.write(done.stderr)
    return done.stdout


def source_date_s() -> int:
    """The SOURCE_DATE_EPOCH (reproducible-builds.org/specs) that is set, else the time of the last commit.

    Where there is no commit, in an unpacked source distribution, it is the time that distribution's files have.
    """
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    if (ROOT / ".git").exists():
        return int(run(["git", "-c", f"safe.directory={ROOT}", "log", "-1", "--format=%ct"]))
    return int((ROOT / "CHANGELOG.md").stat().st_mtime)


def key_of(inputs: Iterable[Path], commands: Iterable[Sequence[str | Path]]) -> str:
    """Hash the inputs' names and bytes and the commands: the same key means the same output."""
    digest = hashlib.sha256()
    for path in sorted(inputs):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode())
        digest.update(content)
    for command in commands:
        digest.update(repr([str(word) for word in command]).encode())
    return digest.hexdigest()


def is_current(output: Path, key: str) -> bool:
    """Whether output exists and was made under this very key. If so its time is renewed, for make's sake."""
    noted = _key_file(output)
    if not output.exists() or not noted.exists() or noted.read_text() != key:
        return False
    os.utime(output)
    return True


def finish(made: Path, output: Path, key: str) -> None:
    """Move what was made to its place in one step, so that nobody ever sees half of it, and note its key."""
    output.parent.mkdir(parents=True, exist_ok=True)
    made.chmod(0o755 if output.suffix == ".so" else 0o644)
    made.replace(output)
    noted = _key_file(output)
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.write_text(key)


def _key_file(output: Path) -> Path:
    return CACHE / "keys" / "-".join(output.resolve().relative_to(ROOT).parts)

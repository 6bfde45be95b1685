"""Watches by executable follow what their path names, while the monitor runs."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.engine.lines import Root
from monitor.watch import Watch
from tests.kernel.follow import follow

if TYPE_CHECKING:
    from collections.abc import Callable


def _roots(path: Path, act: Callable[[], object]) -> list[tuple[str, ...]]:
    """Arguments of the roots of a watch by `path` while `act()` runs."""
    told, _ = follow([Watch(name="app", kind="exe", value=str(path))], act)
    return [tuple(line.argv or ()) for line in told if isinstance(line, Root)]


def _run(path: Path, word: str) -> None:
    subprocess.run([path, word], check=True, stdout=subprocess.DEVNULL)


def _program(path: Path) -> Path:
    return Path(shutil.copy("/bin/echo", path))


def test_a_replaced_file_is_matched_at_its_first_exec(tmp_path: Path) -> None:
    path = _program(tmp_path / "app")

    def act() -> None:
        _run(path, "old")
        _program(tmp_path / "new").rename(path)
        _run(path, "new")
        path.unlink()
        _program(path)
        _run(path, "newest")

    assert [argv[1] for argv in _roots(path, act)] == ["old", "new", "newest"]


def test_hard_and_symbolic_links_count_and_copies_elsewhere_do_not(tmp_path: Path) -> None:
    path = _program(tmp_path / "app")
    hard, soft, copy = tmp_path / "hard", tmp_path / "soft", tmp_path / "elsewhere"
    hard.hardlink_to(path)
    soft.symlink_to(path)
    copy.mkdir()

    def act() -> None:
        _run(hard, "hard")
        _run(soft, "soft")
        _run(_program(copy / "app"), "copy")

    assert [argv[1] for argv in _roots(path, act)] == ["hard", "soft"]


def test_a_turned_directory_link_is_followed(tmp_path: Path) -> None:
    """As with /opt/app/current -> v2: what the path names after a while counts, what it named before does not."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        _program(tmp_path / version / "app")
    current = tmp_path / "current"
    current.symlink_to("v1")
    path = current / "app"

    def act() -> None:
        _run(path, "v1")
        fresh = tmp_path / "fresh"
        fresh.symlink_to("v2")
        fresh.rename(current)
        deadline = threading.Event()
        for attempt in range(200):  # the kernel tells the monitor, which looks again: soon, not at once
            _run(path, f"v2-{attempt}")
            deadline.wait(0.01)
        _run(tmp_path / "v1" / "app", "old")

    words = [argv[1] for argv in _roots(path, act)]
    assert words[0] == "v1"
    assert words[-1] == "v2-199"
    assert "old" not in words

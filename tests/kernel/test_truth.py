"""What a line says of an image is what /proc says of the process, across mounts and namespaces, whatever the length."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import UNSET

from monitor.engine.lines import Adopt, Exec, Exit, Image, Root
from tests.contract.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Program, Programs
    from tests.kernel.conftest import Daemon, Daemons

ARGV_BYTES = 8192
"""KW_ARGV_BYTES in ebpf/event.h."""
PATH_BYTES = 4095
"""PATH_MAX of linux/limits.h, less the terminating zero."""


def _tells_the_truth(image: Image, pid: int) -> None:
    """Compare with /proc, while the process runs."""
    exe, cwd = os.readlink(f"/proc/{pid}/exe"), os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - the text itself
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    deleted = exe.endswith(" (deleted)")
    assert image.exe == exe.removesuffix(" (deleted)")
    assert image.cwd == cwd
    assert (image.deleted is True) == deleted
    assert image.comm == status["Name"]
    assert image.ppid == int(status["PPid"])
    assert (image.uid, image.gid) == (int(status["Uid"].split()[0]), int(status["Gid"].split()[0]))
    if image.truncated is UNSET:
        assert image.argv == tuple(argv)


def _root_of(daemon: Daemon, app: Program) -> Root:
    app.fact("root")
    return daemon.wait_for(Root, pid=app.pid)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of its own."""
    path = tmp_path / "mounted"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_path_across_a_mount(daemons: Daemons, programs: Programs, name: str, mounted: Path) -> None:
    below = mounted / "a" / "b"
    below.mkdir(parents=True)
    exe = below / name
    shutil.copy(programs.path("family", name), exe)
    daemon = daemons.start("--watch", name)
    app = programs.run(exe)
    image = _root_of(daemon, app)
    assert (image.exe, image.cwd) == (str(exe), str(below))
    _tells_the_truth(image, app.pid)
    app.release()
    daemon.stop()


def test_path_at_the_root_of_a_mount(daemons: Daemons, programs: Programs, name: str, mounted: Path) -> None:
    exe = mounted / name
    shutil.copy(programs.path("family", name), exe)
    daemon = daemons.start("--watch", name)
    app = programs.run(exe)
    image = _root_of(daemon, app)
    assert (image.exe, image.cwd) == (str(exe), str(mounted))
    _tells_the_truth(image, app.pid)
    app.release()
    daemon.stop()


def test_path_in_another_mount_namespace(daemons: Daemons, programs: Programs, name: str, tmp_path: Path) -> None:
    exe, hidden = programs.path("family", name), tmp_path / "hidden"
    hidden.mkdir()
    daemon = daemons.start("--watch", name)
    script = 'mount -t tmpfs tmpfs "$1" && mkdir "$1/in" && cp "$0" "$1/in" && cd "$1/in" && exec "./${0##*/}" 1'
    app = programs.run(Path("/usr/bin/unshare"), "-m", "/bin/sh", "-c", script, str(exe), str(hidden))
    child = app.fact("child")["pid"]
    image = _root_of(daemon, app)
    assert not (hidden / "in").exists(), "this namespace has no such mount"
    assert (image.exe, image.cwd) == (f"{hidden}/in/{name}", f"{hidden}/in")
    _tells_the_truth(image, app.pid)
    app.release()
    daemon.wait_for(Exit, pid=child)
    daemon.stop()


def test_path_in_a_chroot(daemons: Daemons, built: Programs, name: str, tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    (jail / "bin").mkdir(parents=True)
    shutil.copy(built.path("storm", name), jail / "bin" / name)  # static: it needs no library in the jail
    daemon = daemons.start("--watch", name)
    app = built.run(Path("/usr/sbin/chroot"), str(jail), f"/bin/{name}")
    app.fact("begun")
    image = daemon.wait_for(Root, pid=app.pid)
    assert (image.exe, image.cwd) == (f"{jail}/bin/{name}", str(jail)), "as the host names it"
    app.go()
    app.fact("paused")
    _tells_the_truth(image, app.pid)
    app.release()
    daemon.stop()


def test_root_directory_is_a_cwd(daemons: Daemons, programs: Programs, name: str) -> None:
    exe = programs.path("family", name)
    daemon = daemons.start("--watch", name)
    app = programs.run(Path("/usr/bin/env"), "-C", "/", str(exe))
    image = _root_of(daemon, app)
    assert image.cwd == "/"
    _tells_the_truth(image, app.pid)
    app.release()
    daemon.stop()


@pytest.mark.parametrize("path_bytes", [257, 1025, 2048, 4000])
def test_long_path_is_whole(daemons: Daemons, programs: Programs, name: str, tmp_path: Path, path_bytes: int) -> None:
    exe = programs.path("family", name)
    place = tmp_path / "long"
    while len(str(place)) < path_bytes - 260:
        place /= "d" * 200
    place /= "e" * max(1, path_bytes - len(str(place)) - len(f"//{name}"))
    place.mkdir(parents=True)
    long = place / name
    assert path_bytes <= len(str(long)) <= path_bytes + 260 <= PATH_BYTES + 260
    shutil.copy(exe, long)
    daemon = daemons.start("--watch", name)
    app = programs.run(long)
    image = _root_of(daemon, app)
    assert (image.exe, image.cwd, image.truncated) == (str(long), str(place), UNSET)
    _tells_the_truth(image, app.pid)
    app.release()
    daemon.stop()


@pytest.mark.parametrize("bytes_of_name", [64, 255])
def test_long_name_is_whole(
    daemons: Daemons, programs: Programs, name: str, tmp_path: Path, bytes_of_name: int
) -> None:
    long = tmp_path / name.ljust(bytes_of_name, "n")
    shutil.copy(programs.path("family", "family"), long)
    daemon = daemons.start("--exe", str(long))
    app = programs.run(long)
    image = _root_of(daemon, app)
    assert image.exe == str(long)
    assert image.comm == long.name[:15]
    _tells_the_truth(image, app.pid)
    app.release()
    daemon.stop()


def test_path_of_many_names_is_whole_or_says_that_it_is_not(
    daemons: Daemons, programs: Programs, name: str, tmp_path: Path
) -> None:
    place = tmp_path.joinpath(*["d"] * 200)
    place.mkdir(parents=True)
    deep = place / name
    shutil.copy(programs.path("family", name), deep)
    daemon = daemons.start("--watch", name)
    app = programs.run(deep)
    image = _root_of(daemon, app)
    if image.truncated is UNSET:
        assert (image.exe, image.cwd) == (str(deep), str(place))
    else:
        assert isinstance(image.exe, str)
        assert str(deep).endswith(image.exe), "what is shown is its end"
    app.release()
    daemon.stop()


@pytest.mark.parametrize("length", [ARGV_BYTES - 1, ARGV_BYTES, ARGV_BYTES + 1, 100_000])
def test_argv_is_whole_up_to_8_kib(daemons: Daemons, programs: Programs, name: str, length: int) -> None:
    exe = programs.path("family", name)
    argument = "a" * (length - len(f"{exe}\0{0}\0") - 1)
    daemon = daemons.start("--watch", name)
    app = programs.run(exe, "0", argument)
    image = _root_of(daemon, app)
    assert len(Path(f"/proc/{app.pid}/cmdline").read_bytes()) == length
    if length <= ARGV_BYTES:
        assert image.truncated is UNSET
        assert image.argv == (str(exe), "0", argument)
    else:
        assert image.truncated is True
        assert isinstance(image.argv, tuple)
        assert image.argv[:2] == (str(exe), "0")
        assert 0 < len(image.argv[2]) <= len(argument)
        assert set(image.argv[2]) == {"a"}
    app.release()
    daemon.stop()


def test_process_with_one_empty_argument_has_just_that(daemons: Daemons, programs: Programs, name: str) -> None:
    exe = programs.path("family", name)
    daemon = daemons.start("--watch", name)
    app = programs.run(Path("/bin/bash"), "-c", f'exec -a "" "{exe}"')
    image = _root_of(daemon, app)
    assert image.argv == ("",)
    _tells_the_truth(image, app.pid)
    app.release()
    daemon.stop()


def test_adopted_images_tell_the_same_as_executed_ones(daemons: Daemons, programs: Programs, name: str) -> None:
    app = programs.start("family", name, "1", "1")
    pids = [app.fact("child", number)["pid"] for number in (1, 2)]
    daemon = daemons.start("--watch", name)
    root = daemon.wait_for(Root, pid=app.pid)
    assert root.cause == "running"
    _tells_the_truth(root, app.pid)
    for pid in pids:
        _tells_the_truth(daemon.wait_for(Adopt, pid=pid), pid)
    app.release()
    daemon.stop()


def test_image_of_a_child_with_other_credentials(daemons: Daemons, programs: Programs, name: str) -> None:
    exe, shown = programs.path("fork_exec", name), programs.path("family", "family")
    for directory in (programs.directory, *programs.directory.parents):
        if directory.stat().st_mode & 0o5 != 0o5:
            directory.chmod(directory.stat().st_mode | 0o5)
    daemon = daemons.start("--watch", name)
    setpriv = ("/usr/bin/setpriv", "--reuid=65534", "--regid=65533", "--clear-groups", str(shown))
    app = programs.run(exe, "1", *setpriv)
    pid = app.fact("root")["pid"]
    eventually(lambda: len(daemon.of(Exec, pid=pid)) == 2, "setpriv, then what it runs")
    first, second = daemon.of(Exec, pid=pid)
    assert (first.uid, first.gid) == (0, 0)
    assert (second.uid, second.gid) == (65534, 65533)
    _tells_the_truth(second, pid)
    app.release()
    daemon.stop()

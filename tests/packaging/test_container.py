"""The container image: with the capabilities and mounts that its description names, and no others, it watches.

Owns a container without an engine: the root of the image that buildah makes, a capability set, mounts. Refuses to know
registries.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.packaging.debs import package
from tests.packaging.trees import Tree, tree
from tests.packaging.watching import ONCE, Daemon, run_application, told

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.packages

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = (ROOT / "build" / "Containerfile").read_text()
MACHINE = os.uname().machine
NAME = f"kwoci{os.getpid() % 1_000_000}"
LOG = "/var/log/kinwatch/events.jsonl"


def _documented() -> list[str]:
    """The words of the documented podman run, up to the image's name."""
    found = re.search(r"^#   podman run (.*?[^\\])$", DESCRIPTION, re.MULTILINE | re.DOTALL)
    assert found
    return shlex.split(found[1].replace("\\\n#", ""))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Tree]]:
    """The image's configuration, and its root: made by buildah, from a Debian tree in place of the registry's."""
    folder = tmp_path_factory.mktemp("image")
    store = ["--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]

    def buildah(*words: str | Path) -> str:
        done = subprocess.run(["buildah", *store, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    base = tree("bookworm", MACHINE, installed=True)
    subprocess.run(["tar", "-C", base.path, "-cf", folder / "base.tar", "."], check=True)
    (folder / "Base").write_text("FROM scratch\nADD base.tar /\n")
    build = ("build", "--isolation", "chroot", "--quiet")
    buildah(*build, "--file", folder / "Base", "--tag", "localhost/base", folder)
    base_is = ("--build-arg", "BASE=localhost/base", "--pull-never")
    buildah(
        *build, *base_is, "--file", ROOT / "build" / "Containerfile", "--tag", "localhost/kinwatch", package().parent
    )
    container = buildah("from", "--pull-never", "localhost/kinwatch")
    try:
        configuration = json.loads(buildah("inspect", "--type", "image", "localhost/kinwatch"))["OCIv1"]["config"]
        yield configuration, Tree(Path(buildah("mount", container)), MACHINE)
    finally:
        buildah("rm", container)
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def test_with_the_documented_capabilities_and_mounts_it_watches(
    image: tuple[dict[str, Any], Tree], tmp_path: Path
) -> None:
    configuration, root = image
    config = Path(f"{root.path}/etc/kinwatch/config.toml")
    config.write_text(config.read_text() + f'\n[[watch]]\nname = "{NAME}"\nprocess = "{NAME}"\n')

    words = _documented()
    (capabilities,) = (word.partition("=")[2] for word in words if word.startswith("--cap-add="))
    assert {"--cap-drop=all", "--pid=host", "--network=host", "--read-only"} <= set(words)
    mounts = [value.split(":") for word, value in itertools.pairwise(words) if word == "--volume"]
    assert ["/sys/fs/bpf", "/sys/fs/bpf"] in mounts
    steps = [f"mount --bind {root.path} {root.path}", f"cd {root.path}"]
    steps += ["mount -t proc proc proc", "mount -t sysfs -o ro sysfs sys", "mount --bind /dev dev"]
    steps += [f"mount -t tmpfs tmpfs {folder}" for folder in ("run", "tmp")]  # with --read-only an engine does
    for source, target, *mode in mounts:
        if source.startswith("/sys/"):
            steps.append(f"mount --bind {source} .{target}")
        else:  # a volume of the host, which here is a folder of the test
            steps += [f"mkdir -p .{target}", f"mount --bind .{target} .{target}"]
        steps += [f"mount -o remount,bind,ro .{target}"] if mode == ["ro"] else []
    steps.append("mount -o remount,bind,ro .")
    kept = ",".join(f"+{name.lower()}" for name in capabilities.split(","))
    entry = [*configuration["Entrypoint"], *configuration["Cmd"]]
    inside = shlex.join(["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs", *entry])
    steps.append(f"exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . {inside}")
    daemon = Daemon(["unshare", "--mount", "sh", "-ec", "; ".join(steps)], tmp_path / "said")
    try:
        assert "capture=core" in daemon.ready, daemon.ready
        effective = re.search(
            r"^CapEff:\s*(\w+)$", Path(f"/proc/{daemon.process.pid}/status").read_text(), re.MULTILINE
        )
        assert effective
        assert int(effective[1], 16).bit_count() == len(capabilities.split(","))
        run_application(root, NAME)
        assert told(root, LOG, NAME, 5) == ONCE
        daemon.end(signal.Signals[configuration["StopSignal"]])
    finally:
        daemon.process.kill()

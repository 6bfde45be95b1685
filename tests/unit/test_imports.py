"""The walls of the house: who may know whom, in Python by imports and in C by inclusions.

Owns the order of the layers. Refuses to know what the modules do: it reads their text only.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "monitor"
NATIVE = PACKAGE / "engine" / "native"

# From the top down. A room may import from lower layers and from itself, never from its own layer's other rooms.
LAYERS = (
    {"__main__", "demo_defender"},
    {"cli", "demo"},
    {"verbs"},
    {"agent", "oneshot", "learning", "doctor", "tree", "local", "cloud"},
    {"launch", "account", "publication", "sample"},
    {"judging", "provisioning", "shadow"},
    {"window", "command"},
    {"capture", "defender", "sinks", "control", "notify", "options"},
    {"detect"},
    {"engine"},
    {"overlay"},
    {"config"},
    {"publishing"},
    {"schema"},
    {"watch", "remote", "durable"},
    {"expect"},
    {"errors"},
    {"stdout"},
)
LAYER_OF = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}

CLOCKS_AND_WORLD = {
    *("asyncio", "datetime", "os", "psutil", "random", "secrets", "select", "signal", "socket", "sqlite3"),
    *("subprocess", "threading", "time"),
}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    """The wing or the single module at the top of the package that path belongs to; "" for the package itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py").replace("__init__", "")


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that path imports, lazily or for types as well, with the line."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            # `from monitor import agent` names a module by its alias.
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_its_layer() -> None:
    rooms = {_room(path) for path in _modules()} - {""}
    assert rooms <= LAYER_OF.keys(), "a new room needs a place in LAYERS"


@pytest.mark.parametrize("path", _modules(), ids=_named)
def test_imports_point_downward_only(path: Path) -> None:
    here = _room(path)
    for name, line in _imports(path):
        parts = name.split(".")
        if parts[0] != "monitor" or len(parts) == 1 or parts[1].startswith("__version"):
            continue
        there = parts[1]
        assert there in LAYER_OF, f"{_named(path)}:{line} imports {name}, which is in no layer"
        if here:
            below = LAYER_OF[there] > LAYER_OF[here]
            assert there == here or below, f"{_named(path)}:{line}: {here} may not import {there}"
        else:
            pytest.fail(f"{_named(path)}:{line}: the package itself imports nothing of ours")


@pytest.mark.parametrize(
    "path", [*sorted((PACKAGE / "detect").rglob("*.py")), PACKAGE / "defender" / "report.py"], ids=_named
)
def test_judgement_knows_no_clock_and_no_world(path: Path) -> None:
    for name, line in _imports(path):
        assert name.split(".")[0] not in CLOCKS_AND_WORLD, f"{_named(path)}:{line} imports {name}"


@pytest.mark.parametrize("path", _modules(), ids=_named)
def test_only_engine_and_capture_touch_the_native_module(path: Path) -> None:
    touches = [name for name, _ in _imports(path) if "engine._native" in name]
    assert not touches or _room(path) in {"engine", "capture"}


@pytest.mark.parametrize("path", _modules(), ids=_named)
def test_the_aws_library_stays_behind_its_seam(path: Path) -> None:
    knows = any(name.split(".")[0] in {"awscrt", "awsiot"} for name, _ in _imports(path))
    assert not knows or path.relative_to(PACKAGE).as_posix() in {
        *("defender/publish.py", "defender/responder.py", "provisioning/service.py")
    }
    knows = any(name.split(".")[0] == "paho" for name, _ in _imports(path))
    assert knows == (path.relative_to(PACKAGE).as_posix() == "defender/paho.py")


@pytest.mark.parametrize("path", _modules(), ids=_named)
def test_the_library_of_the_cloud_stays_behind_its_door(path: Path) -> None:
    """The second file never runs here: it is the text of a function that a template carries."""
    knows = any(name.split(".")[0] in {"boto3", "botocore"} for name, _ in _imports(path))
    assert not knows or path.relative_to(PACKAGE).as_posix() in {"cloud/aws.py", "cloud/quarantine.py"}


def _inclusions(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+([<"][^>"]+[>"])', path.read_text(), re.MULTILINE)


def _without_comments(path: Path) -> str:
    return re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def _engine_files() -> list[Path]:
    """The C files on the engine's side: those that share internal.h."""
    return [path for path in sorted(NATIVE.glob("*.[ch]")) if '"internal.h"' in _inclusions(path)]


def test_a_c_file_is_of_the_engine_or_of_those_that_ask_the_kernel() -> None:
    engine = {path.name for path in _engine_files()}
    assert engine
    for path in sorted(NATIVE.glob("*.c")):
        of_loader = any(name.startswith(("<bpf/", '"loader')) for name in _inclusions(path))
        asks = of_loader or path.name in {"devicedump.c", "procevents.c"}
        assert (path.name in engine) != asks, f"{_named(path)} must share internal.h or ask the kernel, not both"


@pytest.mark.parametrize("path", _engine_files(), ids=_named)
def test_the_engine_knows_no_clock_no_descriptor_and_no_kernel(path: Path) -> None:
    memory = {"assert", "errno", "inttypes", "limits", "pthread", "stdalign", "stdbool", "stddef", "stdint"}
    memory |= {"stdlib", "string"}
    memory |= {"netinet/in", "sys/socket"}  # the numbers of families, protocols and types
    memory |= {"linux/inet_diag", "linux/netlink", "linux/rtnetlink", "linux/sock_diag"}  # the layouts of messages
    system = {name.strip("<>").removesuffix(".h") for name in _inclusions(path) if name.startswith("<")}
    assert system <= memory
    calls = r"\b(?:socket|bind|connect|listen|accept4?|sendto|sendmsg|recvfrom|recvmsg|getsockopt|setsockopt)\s*\("
    assert not re.findall(rf"(?<![\w.>*]){calls}(?=[^)])", _without_comments(path))
    ours = {name.strip('"') for name in _inclusions(path) if name.startswith('"')}
    assert not {name for name in ours if name.startswith("loader")}

"""What the network tests run with: the wire, the peer and the programs, made once; kinwatch and processes per test.

Owns how long each of them lives. Refuses to know what they do: that is rig.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.compiling import compiled
from tests.net.rig import PROGRAMS, Net, Peer, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def net_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the compiled programs; every warning is an error."""
    directory = tmp_path_factory.mktemp("net")
    for source in sorted(PROGRAMS.glob("*.c")):
        compiled(source, directory / source.stem)
    return directory


@pytest.fixture(scope="session")
def wire() -> Iterator[Wire]:
    """Two namespaces; gone at the end."""
    made = Wire()
    yield made
    made.close()


@pytest.fixture(scope="session")
def peer(wire: Wire) -> Iterator[Peer]:
    """The far side."""
    made = Peer(wire)
    yield made
    made.close()


@pytest.fixture
def net(wire: Wire, peer: Peer, net_programs: Path, tmp_path: Path) -> Iterator[Net]:
    """All of it, for one test; what it started has ended when the test has."""
    made = Net(wire, peer, net_programs, tmp_path)
    yield made
    made.close()

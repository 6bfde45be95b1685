"""Golden pairs: these records have made these lines since the wire was fixed, however they are cut into pieces."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from monitor.engine import Engine, LineageRules, lines
from monitor.engine._native import lib

DATA = Path(__file__).resolve().parent.parent / "data"
WATCHES = (("myapp", 0), ("shell", None), ("third", 1), ("ruled", None))
RULES = LineageRules(
    executables=["/usr/bin/cat"],
    files=[(8 << 20 | 1, 22)],
    edges=["/usr/bin/myapp -> /usr/bin/cat", "/usr/bin/cat -> /usr/bin/sh"],
    depth=1,
    forks_per_minute=2,
    uids=[1000],
    forbidden=lib.KW_MEMFD | lib.KW_DELETED | lib.KW_TEMPORARY,
    root="myapp",
)  # of the last watch
EXPECTED_DESTINATIONS, EXPECTED_PORTS = ["192.0.2.0/24", "fd00::/8"], [80]  # of the first watch
NAMES = ("adopted", "after_loss", "exits", "network", "odd_text", "pid_reuse", "ruled", "short_child", "two_watches")


def _cut(stream: bytes) -> list[bytes]:
    records = []
    while stream:
        (size,) = struct.unpack_from("=I", stream)
        records.append(stream[:size])
        stream = stream[size:]
    return records


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("piecewise", [False, True], ids=["whole", "piecewise"])
def test_records_make_the_lines_they_always_made(name: str, *, piecewise: bool) -> None:
    stream = (DATA / f"{name}.rec").read_bytes()
    with Engine(64) as engine:
        for slot, (watch, limit) in enumerate(WATCHES):
            engine.watch(slot, watch, limit)
        engine.expect_destinations(0, EXPECTED_DESTINATIONS)
        engine.expect_ports(0, EXPECTED_PORTS)
        engine.expect_lineage(len(WATCHES) - 1, RULES)
        made = b""
        for piece in _cut(stream) if piecewise else [stream]:
            engine.ingest(piece)
            made += engine.take().lines
        assert engine.losses()["bad_record"] == 0
    assert made.decode() == (DATA / f"{name}.jsonl").read_text()
    for line in made.splitlines():
        lines.decode(line)

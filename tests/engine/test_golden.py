"""Golden pairs: these records have made these lines since the wire was fixed, however they are cut into pieces."""

from __future__ import annotations

import struct

import pytest

from monitor.engine import lines
from tests.engine.golden import DATA, SCENARIOS, golden_engine

NAMES = [scenario.__name__ for scenario in SCENARIOS]


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
    with golden_engine() as engine:
        made = b""
        for piece in _cut(stream) if piecewise else [stream]:
            engine.ingest(piece)
            made += engine.take().lines
        assert engine.losses()["bad_record"] == 0
    assert made.decode() == (DATA / f"{name}.jsonl").read_text()
    for line in made.splitlines():
        lines.decode(line)

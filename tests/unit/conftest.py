"""What tests of the publisher share: a clock that passes at once and a service that answers by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.service import EVENTS, EVENTS_S, Clock, Device, Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="clock")
def the_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Time that passes at once."""
    clock = Clock()
    clock.rule(monkeypatch)
    yield clock
    clock.close()


@pytest.fixture(name="service")
def the_service(clock: Clock) -> Service:
    """A service that accepts everything."""
    return Service(clock)


@pytest.fixture(name="device")
def the_device(clock: Clock, service: Service, tmp_path: Path) -> Device:
    """A device with a topic for its event log, that has not begun."""
    return Device(clock, service, tmp_path / "spool.db", events_topic=EVENTS, events_s=EVENTS_S, events_bytes=1024)

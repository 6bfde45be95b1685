"""What tests of the publisher share: a clock that passes at once and a service that answers by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.service import Clock, Service

if TYPE_CHECKING:
    from collections.abc import Iterator


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

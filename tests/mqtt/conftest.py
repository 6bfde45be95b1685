"""What tests against a real broker share: certificates, a mosquitto, identities on it.

Owns their lifetimes. Refuses to know what is tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mqtt.broker import EVERYTHING, LEAST_PRIVILEGE, THING, Authority, Broker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A certificate authority of this test."""
    return Authority(tmp_path)


@pytest.fixture
def broker(tmp_path: Path, authority: Authority) -> Iterator[Broker]:
    """A broker that gives `<thing>-kinwatch` least privilege, and `responder` and `reader` everything."""
    acl = LEAST_PRIVILEGE.format(client=f"{THING}-kinwatch", thing=THING)
    acl += "".join(EVERYTHING.format(client=client) for client in ("responder", "reader"))
    with Broker(tmp_path, authority, acl) as running:
        yield running

"""What tests against a real broker share: certificates, a mosquitto, identities on it.

Owns their lifetimes. Refuses to know what is tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mqtt.broker import EVERYTHING, LEAST_PRIVILEGE, THING, Authority, Broker
from tests.mqtt.fleet import ACL, Device, Fleet, service

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


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A broker where a claim may do nothing but be provisioned, and the service behind it."""
    with Broker(tmp_path, Authority(tmp_path), ACL) as broker:
        made = Fleet(broker)
        with service(made):
            yield made


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Device:
    """A device that has a claim and nothing else."""
    return Device(tmp_path / "device", fleet.broker)

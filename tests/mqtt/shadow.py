"""The named shadow of a device on a broker of a test: what is wanted of it, what it told.

Owns the document. Refuses to judge: tests do. Source: AWS IoT Developer Guide, "Device Shadow MQTT topics".
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from monitor.defender.responder import FILTERS, Responder
from tests.mqtt.broker import DEADLINE_S, THING, Broker
from tests.mqtt.rig import Listener

BASE = f"$aws/things/{THING}/shadow/name/kinwatch"
LISTENS = "".join(f"topic read {BASE}/{what}\n" for what in ("update/delta", "update/rejected", "get/+"))
MAY = f"topic write {BASE}/get\ntopic write {BASE}/update\n{LISTENS}"
"""What a device needs for it and no more, as mosquitto writes it."""


@dataclass
class Shadow:
    """The service. Used as the responder of a Listener."""

    desired: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)
    """Every update of the device, in order."""
    defender: Responder = field(default_factory=lambda: Responder(None))
    """Answers reports, so that a daemon that ends need not wait for somebody to do so."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, topic: str, payload: bytes, now_s: float) -> list[tuple[str, bytes]]:
        """Answer a call."""
        with self.changed:
            self.changed.notify_all()
            if topic == f"{BASE}/get":
                if not self.desired and not self.reported:
                    return [(f"{BASE}/get/rejected", b'{"code": 404, "message": "No shadow exists with name"}')]
                state = {"desired": self.desired, "reported": self.reported}
                return [(f"{BASE}/get/accepted", json.dumps({"state": state, "version": 1}).encode())]
            if topic != f"{BASE}/update":
                return self.defender.answer(topic, payload, now_s)
            told = json.loads(payload)["state"]["reported"]
            merged = {**self.reported, **told}
            self.reported = {key: value for key, value in merged.items() if value is not None}
            self.told.append(self.reported)
            differs = {key: value for key, value in self.desired.items() if self.reported.get(key) != value}
            if not differs:
                return []
            return [(f"{BASE}/update/delta", json.dumps({"state": differs, "version": 1}).encode())]

    def wait(self, state: str, version: int) -> dict[str, Any]:
        """Wait until the device reports it."""
        deadline = time.monotonic() + DEADLINE_S
        with self.changed:
            while (self.reported.get("state"), self.reported.get("version")) != (state, version):
                left = deadline - time.monotonic()
                assert left > 0, (state, version, self.told)
                self.changed.wait(left)
            return dict(self.reported)


def serving(broker: Broker, shadow: Shadow) -> Listener:
    """The service at a broker, which hears alarms as well. A context manager."""
    filters = [*FILTERS, f"{BASE}/get", f"{BASE}/update", f"kinwatch/{THING}/alarms"]
    return Listener(broker, filters, name="responder", responder=shadow)  # type: ignore[arg-type]


def want(listener: Listener, shadow: Shadow, desired: dict[str, Any]) -> None:
    """Set what is wanted, as the cloud does, and ring the bell."""
    with shadow.changed:
        shadow.desired = desired
    listener.publish(f"{BASE}/update/delta", json.dumps({"state": desired}).encode())

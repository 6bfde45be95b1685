"""AWS IoT fleet provisioning: from a claim certificate to the device's own, and to the next one in time."""

from __future__ import annotations

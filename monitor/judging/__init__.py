"""A security profile judged on this device, and what the device does on an alarm."""

from __future__ import annotations

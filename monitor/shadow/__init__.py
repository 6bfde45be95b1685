"""Configuration from afar through the device shadow: signed, tried, confirmed or rolled back, told."""

from __future__ import annotations

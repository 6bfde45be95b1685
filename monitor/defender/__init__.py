"""The AWS IoT Device Defender report protocol."""

from __future__ import annotations

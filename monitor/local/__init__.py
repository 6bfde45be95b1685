"""The local Device Defender as a command, `kinwatch defender`."""

from __future__ import annotations

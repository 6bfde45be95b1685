"""`kinwatch learn`: what an application does, written down as what is expected of it."""

from __future__ import annotations

"""kinwatch: watches everything an application starts. Owns the version; everything else is in the wings."""

from __future__ import annotations

__version__ = "0.1.0"

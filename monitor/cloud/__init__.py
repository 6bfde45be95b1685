"""What an account needs for a configuration of this device: names, documents, their text; never a call to AWS."""

from __future__ import annotations

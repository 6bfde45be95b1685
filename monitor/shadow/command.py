"""`kinwatch sign`: the document that sets a configuration in a shadow.

Owns what is looked at before something is signed. Refuses to send it: the key is not where the devices are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor import config
from monitor.shadow import document, signature

if TYPE_CHECKING:
    from pathlib import Path


def signed(path: Path, private_key: str, version: int) -> str:
    """Sign a configuration as this version; returns the document, a line of JSON. Raises ConfigInvalid."""
    text = config.read(path)
    # Whether a device looks at packets is its own affair.
    config.overlaid("[capture]\npackets = true\n", "the file on the device", text, str(path))
    return document.desired(text, version, signature.sign(private_key, version, text)).decode() + "\n"

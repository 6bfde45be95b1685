"""A SoftHSM token of a test, and files with secrets.

Owns the token's folder and whoever uses it in a process of its own. Refuses to judge: tests do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.defender.connection import Connection

HSM = "hsm"
LIBRARY = "/usr/lib/softhsm/libsofthsm2.so"
PUBLISH_ONCE = """
    import sys
    import msgspec
    from monitor.defender.connection import Connection
    from monitor.errors import ConfigInvalid
    from tests.mqtt.wires import REPORT, linked, run

    async def once() -> None:
        async with linked(msgspec.json.decode(sys.argv[1], type=Connection)) as (link, _):
            await link.publish(REPORT, b"from a token")

    try:
        run(once())
    except ConfigInvalid as error:
        sys.exit(str(error))
"""


class Token:
    """A SoftHSM token of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tokens").mkdir()
        (folder / "softhsm2.conf").write_text(
            f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n"
        )
        self.environment = os.environ | {"SOFTHSM2_CONF": str(folder / "softhsm2.conf")}
        self._run("softhsm2-util", "--init-token", "--free", "--label", HSM, "--pin", "1234", "--so-pin", "5678")

    def keep(self, key: Path, label: str) -> None:
        """Move a private key into the token."""
        form = self.folder / "pkcs8"
        self._run("openssl", "pkcs8", "-topk8", "-nocrypt", "-in", str(key), "-out", str(form))
        label_and_id = ("--label", label, "--id", label.encode().hex())
        self._run("softhsm2-util", "--import", str(form), "--token", HSM, *label_and_id, "--pin", "1234")
        form.unlink()
        key.unlink()

    def _run(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def publish(self, settings: Connection) -> str:
        """In a process of its own, because the library reads its configuration once; returns what it complains of."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PUBLISH_ONCE), msgspec.json.encode(settings).decode()],
            env=self.environment,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode == 0) == (done.stderr == b""), done.stderr.decode()
        return done.stderr.decode()


def secret(folder: Path, text: str) -> str:
    """A file with a secret, for its owner alone."""
    path = folder / f"secret-{len(list(folder.iterdir()))}"
    path.touch(mode=0o600)
    path.write_text(text + "\n")
    return str(path)
